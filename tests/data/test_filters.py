"""Filters: what each drops and keeps, on planted and on real rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from rlkd.data.cards import load_card
from rlkd.data.curate import build_step
from rlkd.data.curate.filters import question_faults
from rlkd.data.rows import Row, good_rows
from rlkd.data.text import answer_kind, figures, masked_words, ngrams, normal_form, sentences, words


def reasons(spec: Mapping[str, object], texts: Sequence[str], **parts: object) -> list[str | None]:
    """Why each trace goes, None when it stays."""
    row: Row = {"id": "1", "row": 1, "question": "q", "traces": [{"text": text} for text in texts]}
    (decision,) = build_step(spec, **parts).decide([row])
    gone = {removal.trace: removal.reason for removal in decision.removals}
    kept = [] if decision.row is None else [trace["text"] for trace in decision.row["traces"]]
    assert kept == [text for at, text in enumerate(texts) if at not in gone]
    return [gone.get(at) for at in range(len(texts))]


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("<think>\nhm\n</think>\nThe answer is 3.", None),
        ("The answer is 3.", None),
        ("   ", "empty trace"),
        ("<think>\nhm, and so on", "reasoning never closed"),
        ("<think>a</think><think>b</think>3", "several think blocks"),
        ("<think>\nhm\n</think>\n  ", "no answer after the reasoning"),
        ("hm </think> 3", None),  # a prompt that was prefilled with <think>
    ],
)
def test_structure(text: str, fault: str | None) -> None:
    assert reasons({"step": "structure_filter"}, [text]) == [fault]


def test_a_trace_that_ran_into_its_limit_is_cut_off_however_it_looks() -> None:
    traces = [{"text": "so 3", "finished": finished} for finished in (True, False)] + [{"text": "so 3"}]
    row: Row = {"row": 1, "question": "q", "traces": traces}
    (decision,) = build_step({"step": "structure_filter"}).decide([row])
    assert [(gone.trace, gone.reason) for gone in decision.removals] == [(1, "cut off by the token limit")]


def test_structure_options() -> None:
    texts = ["<think>a</think>\\boxed{3}", "\\boxed{3}", "<think>\\boxed{3}</think> three"]
    required = {"step": "structure_filter", "think": "required"}
    assert reasons(required, texts) == [None, "no reasoning block", None]
    assert reasons({"step": "structure_filter", "think": "forbidden"}, texts) == [
        "reasoning block",
        None,
        "reasoning block",
    ]
    ends = {"step": "structure_filter", "ends_with": ["\\boxed{"]}
    assert reasons(ends, texts) == [None, None, "no final answer"]  # a box inside the reasoning is no answer


def test_ngram_filter_drops_loops_at_the_limit() -> None:
    """A run of 5 words, repeated k times, holds k copies of its first 5-gram."""
    loop = "so we try it again "
    spec = {"step": "ngram_filter", "n": 5, "max_count": 20}
    assert reasons(spec, [loop * 20, loop * 21, "short"]) == [None, "repeated n-gram", None]


def test_ngram_filter_keeps_real_solutions(data_dir: Path) -> None:
    card = load_card("gsm8k-train")
    rows = [{"id": "1", "row": 1, **card.example(row)} for row in good_rows(data_dir / "gsm8k_train.jsonl")]
    decisions = build_step({"step": "ngram_filter"}).decide(rows)
    assert all(decision.row is row for decision, row in zip(decisions, rows, strict=True))


def test_lengths_are_counted_by_the_given_tokenizer() -> None:
    texts = ["one two three four", "one", ""]
    spec = {"step": "length_filter", "min_trace": 1, "max_trace": 3}
    assert reasons(spec, texts) == ["trace too long", None, "trace too short"]
    assert reasons(spec, texts, token_counter=len) == ["trace too long", None, "trace too short"]
    assert reasons({**spec, "max_trace": 4}, ["abcd", "abcde"], token_counter=len) == [None, "trace too long"]
    assert build_step(spec).settings()["unit"] == "words"
    assert build_step(spec, token_counter=len).settings()["unit"] == "tokens"


def test_long_prompts_are_dropped_with_their_length() -> None:
    rows: list[Row] = [{"row": 1, "question": "a b c"}, {"row": 2, "question": "a b c d"}]
    kept, gone = build_step({"step": "length_filter", "max_prompt": 3}).decide(rows)
    assert kept.row == rows[0] and gone.row is None and gone.removals[0].evidence == {"length": 4}


def test_pass_rates_keep_a_window_and_name_the_unknown() -> None:
    rates = [0.0, 0.25, 0.75, 1.0, None]
    rows: list[Row] = [{"row": at, "question": "q"} for at in range(5)]

    def pass_rate(batch: Sequence[Row]) -> list[float | None]:
        return [rates[row["row"]] for row in batch]

    spec = {"step": "pass_rate_filter", "low": 0.25, "high": 0.75}
    found = build_step(spec, pass_rate=pass_rate).decide(rows)
    assert [decision.row is not None for decision in found] == [False, True, True, False, True]
    assert [d.removals[0].reason for d in found if d.row is None] == ["too hard", "too easy"]
    assert found[4].row == {**rows[4], "pass_rate": None} and found[1].row == {**rows[1], "pass_rate": 0.25}
    strict = build_step({**spec, "keep_unknown": False}, pass_rate=pass_rate).decide(rows)
    assert strict[4].removals[0].reason == "pass rate unknown"


GOLDS = {
    "number": ["12", "-3", "$1,200", "3.5", "50%", "27"],
    "expression": ["\\frac{1}{2}", "x+1", "(1,2)", "2\\pi", "5:30"],
    "truth": ["Yes", "no", "True", "$false$"],
    "letter": ["C", "(B)"],
    "sentinel": ["proof", "notfound", "N/A", "", "None", "-"],
    "text": ["Mrs. Hilt", "purple"],
}


@pytest.mark.parametrize(("kind", "gold"), [(kind, gold) for kind, golds in GOLDS.items() for gold in golds])
def test_answer_kinds(kind: str, gold: str) -> None:
    assert answer_kind(gold) == kind


@pytest.mark.parametrize(
    ("question", "answer", "faults"),
    [
        ("What is 2 + 2?", "4", []),
        ("Which of these holds? A. one B. two C. three", "C", []),
        ("Which of these holds?", "C", ["letter without options"]),
        ("Which?\n$\\textbf{(A)}\\ 1 \\qquad \\textbf{(B)}\\ 2$", "B", []),
        ("Which? \\mathrm{(A)}\\ 1 \\quad \\mathrm{(B)}\\ 2", "B", []),
        ("Which? (A)1 (B)2", "B", []),
        ("Which? **A.** 1 **B.** 2", "B", []),
        ("Which?\nA\u3001\u4e00 B\u3001\u4e8c", "B", []),
        ("Which? F. 1 G. 2", "G", []),
        ("If P(A) and P(B) are equal, which is an event?", "C", ["letter without options"]),
        ("Is it (A) at all? Say (A).", "C", ["letter without options"]),
        ("Prove that 2 + 2 = 4.", "4", ["proof question"]),
        ("Show that f is finite, and determine its mean.", "4", []),
        ("Find x in the figure below.", "4", ["figure needed"]),
        ("[asy]draw((0,0));[/asy] Find x.", "4", ["figure needed"]),
        ("![](cdn/a.png) Find x.", "4", ["link or image in the question"]),
        ("Itâ€™s 3 o'clock. What time is it?", "3", ["broken encoding"]),
        ("Find x.", "notfound", ["sentinel gold"]),
    ],
)
def test_question_faults(question: str, answer: str, faults: list[str]) -> None:
    assert question_faults({"question": question, "answer": answer}) == faults


def test_real_questions_are_not_called_broken(data_dir: Path) -> None:
    """Over 10,000 real rows none is dropped by the default filter, but the image in Minerva's row 199."""
    dropped = []
    for name in ("gsm8k-train", "gsm8k-test", "svamp", "asdiv", "aime24", "amc23", "medmcqa-test", "minerva-math"):
        card = load_card(name)
        rows = [{"row": at, **card.example(row)} for at, row in card.rows(data_dir) if isinstance(row, dict)]
        decisions = build_step({"step": "question_filter"}).decide(rows)
        dropped += [(name, row["row"]) for row, each in zip(rows, decisions, strict=True) if each.row is None]
    assert dropped == [("minerva-math", 199)]


def test_sentences_cover_the_text_in_order(data_dir: Path) -> None:
    assert [("A 3.5 b. C?\nD")[b:e] for b, e in sentences("A 3.5 b. C?\nD")] == ["A 3.5 b.", " C?\n", "D"]
    assert [("A.\n\n  B.  C")[b:e] for b, e in sentences("A.\n\n  B.  C")] == ["A.\n\n ", " B. ", " C"]
    for row in list(good_rows(data_dir / "math500.jsonl"))[:200]:
        text = row["solution"]
        spans = sentences(text)
        assert "".join(text[begin:end] for begin, end in spans) == text
        assert all(end > begin for begin, end in spans)
    assert sentences("") == []


def test_words_of_other_scripts() -> None:
    """Vowel signs belong to their letter; where no spaces part words, every character counts."""
    assert words("\u0915\u093f \u0915\u0941, cafe\u0301") == ["\u0915\u093f", "\u0915\u0941", "caf\u00e9"]
    assert words("\u5c0f\u660e\u67095\u4e2a\u3002") == ["\u5c0f", "\u660e", "\u6709", "5", "\u4e2a"]
    assert words("\u0e21\u0e35\u0e14\u0e35") == ["\u0e21\u0e35", "\u0e14\u0e35"]
    assert masked_words("\u4e8c\u5341\u4e94\u4e2a x") == ["0", "\u4e2a", "x"]


def test_raised_and_lowered_digits_stay_apart() -> None:
    assert normal_form("10\u00b2 + x\u2081 \u2212 2\u00bd") == "10^2 + x_1 - 2 1\u20442"
    assert words("10\u00b2") == ["10", "2"] and normal_form("x\u207b\u00b9") == "x^-1"


def test_figures_are_numbers_and_operators_in_order() -> None:
    assert figures("Solve $x^2 - 3x + 2 \\le 0$") == ["^", "2", "-", "3", "+", "2", "\\le", "0"]
    assert figures("Two well-known **facts** and/or w3f! \\(x!\\)") == ["two", "!"]
    assert figures("(a-b)*1,200") == ["(", "-", ")", "*", "1,200"] and figures("\u67095\u4e2a") == ["5"]


def test_words_and_masks() -> None:
    assert words("Tom's $x_1$ is 3.50!") == ["tom", "s", "x", "1", "is", "3", "50"]
    assert masked_words("Three of 3.50 and 1,200 or 2/3") == ["0", "of", "0", "and", "0", "or", "0"]
    assert ngrams(["a", "b", "c"], 2) == ["a b", "b c"] and ngrams(["a"], 2) == ["a"] and ngrams([], 2) == []
