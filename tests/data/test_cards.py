"""Every shipped card is valid and reads every row of its file; a wrong card says which key is wrong."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from rlkd.data.cards import DataCard, card_names, cards_folder, load_card
from rlkd.data.fields import AnswerRule, last_boxed, render, text_of
from rlkd.data.rows import BadRow
from rlkd.errors import DataCardError

CARDS = card_names()
LOCAL = [name for name in CARDS if load_card(name).source.file is not None]
NAMED_IN_THE_PLAN = """
    deepmath-103k openr1-math-220k openthoughts-114k-math deepscaler alphamed19k gsm8k-train gsm8k-test math500 aime24
    amc23 minerva-math olympiadbench svamp mawps asdiv medqa-test medmcqa-test pubmedqa-test reasoning-gym
    gsm8k-model-solutions
"""


def test_all_planned_cards_exist() -> None:
    assert not set(NAMED_IN_THE_PLAN.split()) - set(CARDS)


@pytest.mark.parametrize("name", CARDS)
def test_no_card_names_a_machine_path_or_leaves_a_gap(name: str) -> None:
    text = (cards_folder() / f"{name}.yaml").read_text("utf-8")
    assert not re.search(r"[\s\"']/\w", text), "an absolute path"
    for other in load_card(name).decontamination.check_against:
        assert load_card(other).use in ("eval", "both")


@pytest.mark.parametrize("name", LOCAL)
def test_every_row_becomes_an_example_and_the_stated_count_is_true(name: str, data_dir: Path) -> None:
    card = load_card(name)
    rows = [row for _, row in card.rows(data_dir)]
    assert [len(rows)] == [split.rows for split in card.splits if split.origin == "measured"]
    for row in rows:
        assert not isinstance(row, BadRow)
        example = card.example(row)
        assert example["question"].strip() and example["answer"].strip()
        prompt = card.prompt(example)
        assert example["question"].strip() in prompt and "{" + "question}" not in prompt
        for spec in card.fields:
            assert spec.name in row


def test_answers_against_the_raw_rows(data_dir: Path) -> None:
    """The gold of each set, read again in another way."""
    gsm = load_card("gsm8k-test")
    for _, row in gsm.rows(data_dir):
        assert isinstance(row, dict)
        assert gsm.example(row)["answer"] == row["answer"].split("#### ")[1]
    asdiv = load_card("asdiv")
    raw = {row["idx"]: row for _, row in asdiv.rows(data_dir) if isinstance(row, dict)}
    assert asdiv.example(raw[0])["answer"] == "9" and raw[0]["answer"] == "9 (apples)"
    assert asdiv.example(raw[1313])["answer"] == "-(1/3)"  # brackets that are no unit
    assert load_card("amc23").example(next(iter(dict(load_card("amc23").rows(data_dir)).values())))["answer"] == "27"  # type: ignore[arg-type]
    medqa = load_card("medqa-test")
    _, row = next(iter(medqa.rows(data_dir)))
    assert isinstance(row, dict)
    example = medqa.example(row)
    assert example["options"][example["answer"]] == row["answer"]


def test_traces_have_one_box_and_no_calculator_marks(data_dir: Path) -> None:
    card = load_card("gsm8k-train")
    for _, row in card.rows(data_dir):
        assert isinstance(row, dict)
        example = card.example(row)
        (trace,) = example["traces"]
        assert "<<" not in trace["text"] and "####" not in trace["text"]
        assert last_boxed(trace["text"]) == example["answer"]


@pytest.mark.parametrize(
    ("text", "content"),
    [
        ("so \\boxed{3}", "3"),
        ("\\boxed{1} then \\boxed{\\frac{1}{2}}", "\\frac{1}{2}"),
        ("\\boxed{\\left\\{1,2\\right\\}}", "\\left\\{1,2\\right\\}"),
        ("\\boxed{a \\\\ b}", "a \\\\ b"),
    ],
)
def test_last_boxed(text: str, content: str) -> None:
    assert last_boxed(text) == content


@pytest.mark.parametrize("text", ["no box", "\\boxed{\\frac{1}{2}", "\\boxed{\\}"])
def test_last_boxed_refuses_what_is_not_closed(text: str) -> None:
    with pytest.raises(DataCardError, match="boxed"):
        last_boxed(text)


def test_answer_rules_refuse_what_is_not_there() -> None:
    rule = AnswerRule(field="answer", after="####")
    for row in ({"answer": "no marker"}, {"answer": "x ####  "}, {"answer": None}, {"anwser": "#### 3"}):
        with pytest.raises(DataCardError):
            rule.extract(row)
    with pytest.raises(DataCardError, match="did you mean 'answer'"):
        AnswerRule(field="anwser").extract({"answer": "3"})


def test_templates_leave_other_braces_alone() -> None:
    assert render("{q} in \\boxed{} {a.b} {c.0}", {"q": 2.0, "a": {"b": "x"}, "c": ["y"]}) == "2 in \\boxed{} x y"
    assert text_of(2.5) == "2.5" and text_of(1e300) == str(int(1e300))
    with pytest.raises(DataCardError, match="null"):
        render("{q}", {"q": None})


def _broken(tmp_path: Path, **changes: object) -> Path:
    card = yaml.safe_load((cards_folder() / "gsm8k-test.yaml").read_text("utf-8")) | changes
    path = tmp_path / "gsm8k-test.yaml"
    path.write_text(yaml.safe_dump(card))
    return path


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"verifer": "math"}, "verifer: Extra inputs"),
        ({"use": "training"}, "use: Input should be"),
        ({"source": {"url": "u", "file": "/data/x.jsonl", "licence": "MIT"}}, "relative to the data folder"),
        ({"source": {"url": "u", "hub": "a/b", "licence": "MIT"}}, "revision_note must say why"),
        ({"splits": [{"name": "test", "rows": None, "origin": "measured"}]}, "does not go with origin"),
        ({"splits": [{"name": "test", "rows": 5, "origin": "guessed"}]}, "splits.0.origin"),
        ({"prompt_template": "no place"}, "must contain {question}"),
        ({"name": "other"}, "must agree"),
    ],
)
def test_a_wrong_card_says_what_is_wrong(tmp_path: Path, changes: dict[str, object], message: str) -> None:
    with pytest.raises(DataCardError, match=message.replace("{", r"\{").replace("}", r"\}")):
        load_card(_broken(tmp_path, **changes))


def test_unknown_names_get_a_near_match() -> None:
    with pytest.raises(DataCardError, match="did you mean 'math500'"):
        load_card("math-500")


def test_claims_must_match_traces() -> None:
    card = load_card("openr1-math-220k")
    row = {"uuid": "u", "problem": "p", "answer": "1", "source": "s", "problem_type": "t", "generations": ["a", None]}
    with pytest.raises(DataCardError, match="2 traces"):
        card.example({**row, "correctness_math_verify": [True]})
    example = card.example({**row, "correctness_math_verify": [True, False]})
    assert example["traces"] == [{"text": "a", "model": "DeepSeek-R1", "claim": True}]


def test_claims_are_read_as_their_publishers_write_them() -> None:
    card = load_card("openr1-math-220k")
    row = {"uuid": "u", "problem": "p", "answer": "1", "source": "s", "problem_type": "t", "generations": ["a", "b"]}

    def claims(given: object) -> list[object]:
        return [trace["claim"] for trace in card.example({**row, "correctness_math_verify": given})["traces"]]

    assert claims(None) == [None, None], "null speaks of all traces"
    assert claims([1, 0.0]) == claims(["True", "no"]) == claims(["YES", "0"]) == [True, False]
    assert claims(["", None]) == [None, None]
    with pytest.raises(DataCardError, match="'correctness_math_verify': 'perhaps' says neither right nor wrong"):
        claims([True, "perhaps"])


def test_a_hub_that_is_unreachable_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    card: DataCard = load_card("deepmath-103k")
    with pytest.raises(DataCardError, match="zwhe99/DeepMath-103K"):
        next(iter(card.rows()))


def test_a_data_file_is_no_card(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text("{}")
    with pytest.raises(DataCardError, match="is a data file, not a card"):
        load_card(tmp_path / "rows.jsonl")
