"""Rows, prompts and worked solutions, on real data."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from rlkd.data.prompt import PromptBuilder
from rlkd.data.reasoning_gym import load_reasoning_gym
from rlkd.data.rows import good_rows
from rlkd.data.source import load_held_in, load_sources
from rlkd.errors import RecipeError
from rlkd.models.tokenizer import build_tokenizer
from rlkd.recipe.data import DataSpec, FieldMap, FieldRule, FileData, ReasoningGymData
from rlkd.recipe.models import BpeTokenizer, CharTokenizer

SHARED = Path(os.environ.get("RLKD_SHARED", Path(__file__).parents[3] / "shared"))
CHAIN = ReasoningGymData(task="chain_sum", size=40, seed=1)


def gsm8k() -> FileData:
    if not (SHARED / "data").is_dir():
        pytest.skip("the shared data folder is not beside the checkout (RLKD_SHARED)")
    fields = FieldMap(
        answer=FieldRule(template="{answer}", pattern=r"####\s*(.+)"), solution=FieldRule(template="{answer}")
    )
    return FileData(path=str(SHARED / "data" / "gsm8k_train.jsonl"), fields=fields, stop=50)


@pytest.fixture
def jsonl(tmp_path: Path) -> Iterator[Path]:
    path = tmp_path / "rows.jsonl"
    rows = [
        {"q": "1+1?", "a": "2"},
        {"q": "2+2?", "a": None},
        {"q": "", "a": "4"},
        {"q": "3+3?", "a": "six #### 6"},
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    yield path


def test_real_rows_are_mapped_by_template_and_pattern() -> None:
    loaded = load_sources([gsm8k()], where="data.train", root=Path())
    first = loaded.examples[0]
    assert len(loaded.examples) == 50
    assert first.answer == "72"
    assert first.solution is not None
    assert first.solution.endswith("#### 72")


def test_bad_rows_are_left_out_and_counted(jsonl: Path) -> None:
    fields = FieldMap(question=FieldRule(template="{q}"), answer=FieldRule(template="{a}"))
    loaded = load_sources([FileData(path=str(jsonl), fields=fields)], where="data.train", root=Path())
    assert [example.question for example in loaded.examples] == ["1+1?", "3+3?"]
    assert dict(loaded.excluded) == {"empty answer": 1, "empty question": 1}


def test_a_row_that_its_pattern_does_not_match_is_left_out(jsonl: Path) -> None:
    fields = FieldMap(question=FieldRule(template="{q}"), answer=FieldRule(template="{a}", pattern=r"####\s*(.+)"))
    loaded = load_sources([FileData(path=str(jsonl), fields=fields)], where="data.train", root=Path())
    assert [example.answer for example in loaded.examples] == ["6"]


@pytest.mark.parametrize(
    ("source", "said"),
    [
        (FileData(path="nothing.jsonl"), "data.train.path: there is no file"),
        (FileData(path=__file__), "'.py' is not read"),
        (ReasoningGymData(task="chain_sm", size=3, seed=0), "did you mean 'chain_sum'"),
        (ReasoningGymData(task="chain_sum", size=3, seed=0, config={"min_trms": 3}), "data.train.config"),
    ],
)
def test_wrong_sources_are_named(source: FileData | ReasoningGymData, said: str) -> None:
    with pytest.raises(RecipeError, match=said):
        load_sources([source], where="data.train", root=Path())


@pytest.mark.parametrize("name", ["rows.csv", "rows.json", "rows.jsonl", "rows.jsonl.gz", "rows.parquet"])
def test_every_format_that_curation_reads(tmp_path: Path, name: str) -> None:
    from datasets import Dataset

    table, path = Dataset.from_list([{"q": "1+1?", "a": "2"}, {"q": "2+2?", "a": "4"}]), tmp_path / name
    if name.endswith(".csv"):
        table.to_csv(path)
    elif name.endswith(".parquet"):
        table.to_parquet(path)
    else:
        options = {"compression": "gzip"} if name.endswith(".gz") else {}
        table.to_json(path, lines="jsonl" in name, **options)
    fields = FieldMap(question=FieldRule(template="{q}"), answer=FieldRule(template="{a}"))
    loaded = load_sources([FileData(path=str(path), fields=fields)], where="data.train", root=Path())
    assert [(example.question, str(example.answer)) for example in loaded.examples] == [("1+1?", "2"), ("2+2?", "4")]
    assert [row["q"] for row in good_rows(path)] == ["1+1?", "2+2?"]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "is empty"),
        (b'{"q": "1", "a": 2}\n{"q": "x" "a": 3}\n', "row 2: not JSON"),
        (b'{"q": "1", "a": 2}\n[1]\n', "row 2: a list where an object is needed"),
        (b'{"q": "\xe9", "a": 2}\n', "UTF-8"),
    ],
)
def test_a_file_that_cannot_be_read_names_the_row(tmp_path: Path, content: bytes, said: str) -> None:
    (tmp_path / "rows.jsonl").write_bytes(content)
    fields = FieldMap(question=FieldRule(template="{q}"), answer=FieldRule(template="{a}"))
    source = FileData(path="rows.jsonl", fields=fields)
    with pytest.raises(RecipeError, match=said):
        load_sources([source], where="data.train", root=tmp_path)


@pytest.mark.parametrize(
    ("early", "late"),
    [
        ({"rate": None}, {"rate": 0.5}),
        ({"rate": None}, {"rate": True}),
        ({"rate": 5}, {"rate": "Level 5"}),
        ({}, {"rate": 1}),
        ({"rate": 1}, {}),
    ],
)
def test_a_column_may_change_its_kind_late_in_a_large_file(
    tmp_path: Path, early: dict[str, object], late: dict[str, object]
) -> None:
    """Beyond the first 10 MB, from which table readers guess the kinds."""
    row = {"question": "1+1?", "answer": "2", "trace": "word " * 2400}
    lines = [json.dumps(row | early) + "\n"] * 1000 + [json.dumps(row | late) + "\n"]
    (tmp_path / "rows.jsonl").write_text("".join(lines))
    fields = FieldMap(extra={"rate": FieldRule(template="{rate}")})
    loaded = load_sources([FileData(path="rows.jsonl", fields=fields)], where="data.train", root=tmp_path)
    assert len(loaded.examples) == 1001 and not loaded.excluded
    rates = [None if (rate := each.get("rate")) is None else str(rate) for each in (early, late)]
    assert [loaded.examples[at].fields["rate"] for at in (0, 1000)] == rates


def test_start_and_stop_choose_rows_and_keep_their_ids(tmp_path: Path) -> None:
    lines = [json.dumps({"question": f"q{at}", "answer": "1"}) for at in range(4)]
    (tmp_path / "rows.jsonl").write_text("\n\n".join([*lines, "no row"]))  # blank lines are no rows; nor is the last
    source = FileData(path="rows.jsonl", start=1, stop=3)
    loaded = load_sources([source], where="data.train", root=tmp_path)
    assert [(each.id, each.question) for each in loaded.examples] == [("rows-1", "q1"), ("rows-2", "q2")]
    with pytest.raises(RecipeError, match=r"rows\.jsonl cannot be read: row 9: not JSON"):
        load_sources([source.model_copy(update={"stop": None})], where="data.train", root=tmp_path)


def test_a_template_is_filled_once(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text(json.dumps({"problem": "the sum of x^{n}", "n": "cm", "answer": "1"}))
    fields = FieldMap(question=FieldRule(template="{problem} in {n}"))
    (example,) = load_sources([FileData(path="rows.jsonl", fields=fields)], where="d", root=tmp_path).examples
    assert example.question == "the sum of x^{n} in cm"


def test_a_field_that_names_no_column_is_refused(jsonl: Path) -> None:
    """Every row would have the same answer."""
    fields = FieldMap(question=FieldRule(template="{q}"), answer=FieldRule(template="a"))
    with pytest.raises(RecipeError, match=r"fields\.answer: 'a' names no column.*write '\{a\}'"):
        load_sources([FileData(path=str(jsonl), fields=fields)], where="data.train", root=Path())


def test_a_start_beyond_the_rows_is_named(jsonl: Path) -> None:
    fields = FieldMap(question=FieldRule(template="{q}"), answer=FieldRule(template="{a}"))
    with pytest.raises(RecipeError, match=r"data\.train\.start: 10, but there are \d rows"):
        load_sources([FileData(path=str(jsonl), fields=fields, start=10)], where="data.train", root=Path())


def test_a_missing_column_names_the_nearest(jsonl: Path) -> None:
    source = FileData(
        path=str(jsonl), fields=FieldMap(question=FieldRule(template="{q}"), answer=FieldRule(template="{aa}"))
    )
    with pytest.raises(RecipeError, match=r"fields\.answer: the data has no column 'aa'; did you mean 'a'"):
        load_sources([source], where="data.train", root=Path())


def test_the_same_file_twice_is_refused(jsonl: Path) -> None:
    source = FileData(
        path=str(jsonl), fields=FieldMap(question=FieldRule(template="{q}"), answer=FieldRule(template="{a}"))
    )
    with pytest.raises(RecipeError, match="occurs twice"):
        load_sources([source, source], where="data.train", root=Path())


def test_neighbouring_seeds_share_no_problem() -> None:
    """The package itself seeds item i with seed + i: sets of seeds 1 and 2 would be the same but for one."""
    one = {e.question for e in load_reasoning_gym(CHAIN, where="x")}
    two = {e.question for e in load_reasoning_gym(CHAIN.model_copy(update={"seed": 2}), where="x")}
    again = {e.question for e in load_reasoning_gym(CHAIN, where="x")}
    assert one == again
    assert len(one & two) < 4


def test_worked_solutions_are_right() -> None:
    for example in load_reasoning_gym(CHAIN, where="x"):
        assert example.solution is not None
        for step in example.solution.rsplit(", ", 1)[0].split(", "):
            left, _, right = step.partition("=")
            assert eval(left) == int(right)
        assert example.solution.endswith(f"\\boxed{{{example.answer}}}")


def test_worked_share_leaves_steps_out_of_that_many_solutions() -> None:
    many = CHAIN.model_copy(update={"size": 2000, "worked_share": 0.3})
    full, some = (load_reasoning_gym(spec, where="x") for spec in (many.model_copy(update={"worked_share": 1.0}), many))
    short = [example for example in some if example.solution == f"\\boxed{{{example.answer}}}"]
    assert abs(len(short) / len(some) - 0.7) < 0.03
    assert all(a.solution == b.solution for a, b in zip(full, some, strict=True) if b not in short)
    assert some == load_reasoning_gym(many, where="x")
    riddle = ReasoningGymData(task="leg_counting", size=4, seed=1, worked_share=0.5)
    with pytest.raises(RecipeError, match=r"data\.train\.worked_share: task 'leg_counting' has no worked solutions"):
        load_reasoning_gym(riddle, where="data.train")


def test_what_is_evaluated_is_never_trained_on() -> None:
    examples = load_reasoning_gym(CHAIN, where="x")
    loaded = load_held_in([CHAIN], examples[:7], where="stages.sft.data", root=Path())
    assert {example.question for example in examples[:7]}.isdisjoint(example.question for example in loaded.examples)
    assert loaded.excluded["question also in data.eval"] == len(examples) - len(loaded.examples) >= 7
    with pytest.raises(RecipeError, match=r"stages\.sft\.data: every question is also in data\.eval"):
        load_held_in([CHAIN], examples, where="stages.sft.data", root=Path())


@pytest.mark.parametrize("spec", [CharTokenizer(), BpeTokenizer(vocab_size=400)], ids=["char", "bpe"])
def test_prompts_round_trip_and_targets_end_the_turn(spec: CharTokenizer | BpeTokenizer) -> None:
    examples = load_reasoning_gym(CHAIN, where="x")
    texts = [text for e in examples for text in (e.question, e.solution or "")]
    tokenizer = build_tokenizer(spec, texts, 128)
    builder = PromptBuilder(tokenizer, DataSpec(train=[CHAIN], system="Be brief."))
    for example in examples:
        prompt = builder.prompt(example)
        target = builder.completion_ids(example, prompt)
        assert tokenizer.decode(prompt.token_ids) == prompt.text
        assert "Be brief." in prompt.text
        assert tokenizer.decode(target[:-1]) == example.solution
        assert target[-1] == tokenizer.eos_token_id
        assert tokenizer.eos_token_id not in target[:-1]
        assert tokenizer.unk_token_id not in (*prompt.token_ids, *target)
        assert tokenizer.pad_token_id != tokenizer.eos_token_id


def test_prompts_beyond_the_window_are_counted() -> None:
    examples = load_reasoning_gym(CHAIN, where="x")
    builder = PromptBuilder(build_tokenizer(CharTokenizer(), (), 128), DataSpec(train=[CHAIN]))
    kept, excluded = builder.prompts(examples, max_tokens=10)
    assert kept == []
    assert excluded == {"prompt longer than 10 tokens": 40}


def test_a_tokenizer_without_template_or_end_is_refused() -> None:
    tokenizer = build_tokenizer(CharTokenizer(), (), 128)
    tokenizer.chat_template = None
    with pytest.raises(RecipeError, match="no chat template"):
        PromptBuilder(tokenizer, DataSpec(train=[CHAIN]))
    tokenizer = build_tokenizer(CharTokenizer(), (), 128)
    tokenizer.eos_token = None
    with pytest.raises(RecipeError, match="no end-of-sequence token"):
        PromptBuilder(tokenizer, DataSpec(train=[CHAIN]))
