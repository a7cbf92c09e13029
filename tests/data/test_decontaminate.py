"""Copies and paraphrases of real evaluation questions, planted among real training questions."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from rlkd.data.cards import cards_folder, load_card
from rlkd.data.curate import Step, build_step, curate
from rlkd.data.curate.decontaminate import EvalIndex, EvalQuestion, load_eval_questions
from rlkd.data.curate.parts import build_steps
from rlkd.data.curate.spec import CurationSpec
from rlkd.data.rows import Row, good_rows, write_rows
from rlkd.errors import DataCardError

SETS = ("gsm8k-test", "math500", "aime24", "amc23", "minerva-math", "olympiadbench")
PARAPHRASES = Path(__file__).with_name("paraphrases.jsonl")


@pytest.fixture(scope="module")
def questions(data_dir: Path) -> list[EvalQuestion]:
    return load_eval_questions(SETS, str(data_dir))


@pytest.fixture(scope="module")
def index(questions: list[EvalQuestion]) -> EvalIndex:
    return EvalIndex(questions)


@pytest.fixture(scope="module")
def training(data_dir: Path) -> list[str]:
    card = load_card("gsm8k-train")
    return [card.example(row)["question"] for row in good_rows(data_dir / "gsm8k_train.jsonl")]


def other_numbers(text: str) -> str:
    """The question with every number made another one."""
    return re.sub(r"\d+", lambda match: str(int(match[0]) + 7), text)


COPIES = {
    "exact": lambda text: f"  {text.upper()}\n",
    "wrapped": lambda text: f"Please solve the following problem carefully.\n\n{text}\n\nThink before you answer.",
    "punctuation": lambda text: re.sub(r"[.,?!$]", "", text),
    "cut off": lambda text: " ".join(text.split()[: int(0.7 * len(text.split()))]),
}


@pytest.mark.parametrize("kind", COPIES)
def test_copies_are_found(kind: str, index: EvalIndex, questions: list[EvalQuestion]) -> None:
    """Every copy with at least 20 words is found, and named as the question that it copies (or an equal one)."""
    # a cut falls on formulas in the other sets, where "70 % of the text" is not 70 % of the words
    sets = SETS if kind != "cut off" else ("gsm8k-test",)
    long = [item for item in questions if len(item.question.split()) >= 20 and item.set in sets][::2]
    found = index.matches([COPIES[kind](item.question) for item in long])
    missed = [item for item, match in zip(long, found, strict=True) if match is None]
    assert len(long) > 500
    assert len(missed) <= 0.01 * len(long)
    named = [match.eval_id == item.id for item, match in zip(long, found, strict=True) if match is not None]
    assert sum(named) / len(named) > 0.98  # sub-problems of one text share most of it


def test_number_swapped_copies_are_found_by_the_masked_rule_alone(
    index: EvalIndex, questions: list[EvalQuestion]
) -> None:
    word_problems = [item for item in questions if item.set == "gsm8k-test"][::5]
    swapped = [other_numbers(item.question) for item in word_problems]
    found = index.matches(swapped)
    assert None not in found
    blind = EvalIndex(questions, masked_coverage=2.0).matches(swapped)
    assert sum(match is not None for match in blind) < 0.9 * len(found), "plain n-grams miss some of them"


def test_ordinary_training_questions_are_left_alone(index: EvalIndex, training: list[str]) -> None:
    """GSM8K's own training questions: three have a twin in the test set (names and numbers changed)."""
    found = {at: match for at, match in enumerate(index.matches(training)) if match is not None}
    twins = sorted((training[at][:15], match.eval_question[:15]) for at, match in found.items())
    assert twins == [("A train travels", "A plane travels")] * 2 + [("Bella bought st", "Max bought stam")]


def test_formulas_with_masked_numbers_are_no_match() -> None:
    """With numbers masked, these have the same words; what they ask has nothing in common."""
    pairs = [
        ("Compute $\\sin^3 18 + \\sin^2 18.$", "Compute $\\sin^2 4 + \\sin^2 8 + \\sin^2 12 + \\dots + \\sin^2 176$."),
        ("What is the value of $(26^2 - 24^2 - 10)^2 - 10^2$?", "What is the value of $513^2 - 487^2$?"),
    ]
    for known, other in pairs:
        assert EvalIndex([EvalQuestion("e", "1", known)], coverage=1.0).matches([other]) == [None]


def test_every_match_shows_what_matched(index: EvalIndex, questions: list[EvalQuestion]) -> None:
    item = next(item for item in questions if item.set == "gsm8k-test")
    (match,) = index.matches([f"Hello. {item.question}"])
    assert match is not None and match.rule == "ngram" and match.score == 1.0
    assert (match.eval_set, match.eval_id, match.eval_question) == (item.set, item.id, item.question)
    assert all(len(piece.split()) == 5 for piece in match.matched_text.split(" ... "))


def test_wording_that_many_questions_share_does_not_count() -> None:
    """Six questions share an eight-word start; it alone must not mark a seventh."""
    start = "Let n be a positive integer such that"
    ends = ["it has nine divisors and is odd", "its square ends in the digits 44", "two is not a factor of its root"]
    shared = [EvalQuestion("e", str(at), f"{start} {ends[at % 3]} case {at}") for at in range(6)]
    assert EvalIndex(shared, max_shared=5, coverage=0.1).matches([f"{start} nothing else is known"]) == [None]
    assert EvalIndex(shared[:1], max_shared=5, coverage=0.1).matches([f"{start} nothing else is known"]) != [None]


def test_a_short_question_is_found_whole_but_not_in_parts() -> None:
    index = EvalIndex([EvalQuestion("e", "1", "Compute the sum 17 + 25.")], masked_coverage=2.0)
    (found,) = index.matches(["Hi! Compute the sum: 17 + 25, please"])
    assert found is not None and found.rule == "ngram"
    assert index.matches(["Compute the sum 17 + 26.", "Compute the sum", "the sum 17 + 25"]) == [None] * 3


def test_a_question_of_few_words_is_no_match_inside_a_longer_one() -> None:
    index = EvalIndex([EvalQuestion("e", "1", "Treatment of choice is"), EvalQuestion("e", "2", "Steroids:")])
    long = "A patient with a fracture is in pain and had steroids before. What treatment of choice is given?"
    assert index.matches([long]) == [None]
    assert None not in index.matches(["So: treatment of choice is?", "Steroids"])


def test_a_chinese_copy_with_other_numbers_is_found() -> None:
    known = "小明有五个苹果,他给了小红两个苹果,又买了三个梨。请问小明现在一共有多少个水果?"
    other = "小明有十六个苹果,他给了小红7个苹果,又买了四个梨。请问小明现在一共有多少个水果?"
    index = EvalIndex([EvalQuestion("e", "1", known)])
    (found,) = index.matches([other])
    assert found is not None
    assert index.matches(["小红有一个苹果。请问小红现在一共有多少个苹果?"]) == [None]


def test_other_evaluation_rows_are_another_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Decisions against other rows, or read otherwise, must not be used again; a missing file is named first."""
    card = yaml.safe_load((cards_folder() / "svamp.yaml").read_text("utf-8"))
    (tmp_path / "svamp.yaml").write_text(yaml.safe_dump(card))
    monkeypatch.setenv("RLKD_CARDS_DIR", str(tmp_path))
    row: Row = {"Body": "Tom owns seven red marbles.", "Question": "How many has he?", "Answer": 3.0}
    row |= {"ID": "1", "Type": "", "Equation": "", "idx": 0}
    source = tmp_path / "rows.jsonl"
    write_rows(source, [{"question": "Tom owns seven red marbles. How many has he?", "answer": "3"}, {"question": "x"}])

    def step() -> Step:
        spec = CurationSpec(source="x", data_dir=str(tmp_path), steps=[{"step": "decontaminate", "sets": ["svamp"]}])
        return build_steps(spec, tmp_path)[0]

    with pytest.raises(DataCardError, match=r"steps\.0: card 'svamp': no file"):
        step()
    write_rows(tmp_path / "svamp.jsonl", [{**row, "Body": "Another story of four fishermen at sea."}])
    before = step().settings()
    curate(source, [step()], tmp_path / "out")
    assert step().settings() == before
    write_rows(tmp_path / "svamp.jsonl", [row])
    with pytest.raises(DataCardError, match="other settings"):
        curate(source, [step()], tmp_path / "out")
    now = step().settings()
    card["reading"]["question"] += " "
    (tmp_path / "svamp.yaml").write_text(yaml.safe_dump(card))
    assert step().settings() != now


def test_paraphrases_are_found_by_meaning(data_dir: Path, embedder: Any, training: list[str]) -> None:
    """30 paraphrases of the first 100 test questions, written for this test, among 100 real training questions."""
    rows = list(good_rows(PARAPHRASES))
    test_set = load_eval_questions(["gsm8k-test"], str(data_dir))[:100]
    texts = [row["paraphrase"] for row in rows]
    words_only = sum(match is not None for match in EvalIndex(test_set).matches(texts))
    found = EvalIndex(test_set, embedder=embedder).matches(texts + training[:100])
    pairs = list(zip(found, rows, strict=False))
    hits = [match is not None and match.eval_id == str(row["gsm8k_test_row"]) for match, row in pairs]
    assert words_only <= 3
    assert sum(hits) >= 0.85 * len(rows)
    assert sum(match is not None for match in found[len(rows) :]) <= 1


def test_a_judge_decides_among_the_nearest(embedder: Any) -> None:
    asked: list[tuple[str, str]] = []

    def judge(question: str, candidate: str) -> bool:
        asked.append((question, candidate))
        return candidate.startswith("B")

    items = [EvalQuestion("e", name, f"{name} has three apples and eats one of them today") for name in "ABCDEFG"]
    index = EvalIndex(items, embedder=embedder, judge=judge, cosine=0.5, n=30, coverage=1.0, masked_coverage=1.0)
    (match,) = index.matches(["Today one of the three apples that Bea has is eaten by her"])
    assert len(asked) <= 5
    assert (match is None) == all(not candidate.startswith("B") for _, candidate in asked)


def test_the_step_writes_an_inspectable_list(data_dir: Path, questions: list[EvalQuestion]) -> None:
    copied = next(item for item in questions if item.set == "aime24")
    rows: list[Row] = [
        {"row": 1, "question": copied.question},
        {"row": 2, "question": "What is the colour of the sky?"},
    ]
    step = build_step({"step": "decontaminate", "sets": ["aime24"]}, data_dir=str(data_dir))
    gone, kept = step.decide(rows)
    assert kept.row == rows[1] and gone.row is None
    evidence = gone.removals[0].evidence
    assert gone.removals[0].reason == "contaminated (exact)"
    assert (evidence["eval_set"], evidence["eval_id"]) == ("aime24", copied.id)
    assert evidence["eval_question"] == copied.question
    json.dumps(dict(evidence))
    assert step.settings()["embedding"] is False
