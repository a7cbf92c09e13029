"""A damaged copy of real rows: every planted fault is reported with its row, and every good row is still used."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from reward import load
from rlkd.data.cards import DataCard, load_card
from rlkd.data.check import CheckReport, check_card, guess_rate
from rlkd.data.rows import Row, good_rows

ROWS = 40


def checked(card: DataCard, folder: Path, **options: Any) -> CheckReport:
    verifier = load(card.verifier)
    return check_card(
        card, data_dir=folder, check_golds=lambda rows: [verifier.check_gold(row) for row in rows], **options
    )


@pytest.fixture
def real(data_dir: Path) -> list[Row]:
    return list(good_rows(data_dir / "math500.jsonl"))[:ROWS]


def planted(rows: list[Row], folder: Path, lines: dict[int, Any]) -> DataCard:
    """Write the rows with some lines (from 1) replaced, under the card's name."""
    out = [json.dumps(row) for row in rows]
    for number, value in lines.items():
        out[number - 1] = value if isinstance(value, str) else json.dumps({**rows[number - 1], **value})
    (folder / "math500.jsonl").write_text("\n".join(out) + "\n", "utf-8")
    card = load_card("math500")
    return card.model_copy(update={"splits": (card.splits[0].model_copy(update={"rows": len(rows)}),)})


PLANTS: dict[str, tuple[int, Any]] = {
    "unreadable row": (3, '{"problem": "cut off'),
    "field 'answer' missing": (4, {"answer": None}),
    "field 'level' of wrong type": (6, {"level": "5"}),
    "no question": (7, {"problem": "   "}),
    "sentinel gold": (8, {"answer": "proof"}),
    "gold is a whole solution": (9, {"answer": "First we note that the sum of the two numbers is even, " * 6}),
    "letter without options": (10, {"problem": "Which statement holds?", "answer": "C"}),
    "link or image in the question": (11, {"problem": "See https://example.org/a.png and find x."}),
    "proof question": (12, {"problem": "Prove that the square root of 2 is irrational."}),
    "broken encoding": (13, {"problem": "AliceÃ©s age is 3. What is twice it?"}),
    "gold not accepted by its verifier": (17, {"answer": "{{"}),
}


def test_every_planted_fault_is_reported_in_its_row(real: list[Row], tmp_path: Path) -> None:
    clean = checked(planted(real, tmp_path, {}), tmp_path)
    card = planted(real, tmp_path, dict(PLANTS.values()))
    report = checked(card, tmp_path)
    before = {(fault.row, fault.kind) for fault in clean.faults}
    new = {(fault.row, fault.kind) for fault in report.faults} - before
    assert {(row, kind) for kind, (row, _) in PLANTS.items()} <= new
    # whatever else is new is in a planted row (a null answer also has no example, and so on)
    assert {row for row, _ in new} == {row for row, _ in PLANTS.values()}
    assert not report.ok
    # only the row that is no JSON and the one without an answer can't be used
    assert (report.rows, report.readable, report.examples) == (ROWS, ROWS - 1, ROWS - 2)
    text = "\n".join(report.lines())
    assert "unreadable row: 1 in rows 3" in text and "sentinel gold: 1 in rows 8" in text


def test_duplicates_name_the_first_row(real: list[Row], tmp_path: Path) -> None:
    same = {"problem": real[0]["problem"].upper() + "  ", "answer": real[0]["answer"]}
    other = {"problem": real[1]["problem"], "answer": "12345"}
    card = planted(real, tmp_path, {20: same, 21: other, 22: {"unique_id": real[4]["unique_id"]}})
    kinds = checked(card, tmp_path).by_kind()
    assert [(fault.row, fault.detail) for fault in kinds["duplicate question"]] == [(20, "row 1")]
    assert [fault.row for fault in kinds["duplicate question with another gold"]] == [21]
    assert [(f.row, f.detail) for f in kinds["duplicate id"]] == [(22, f"'{real[4]['unique_id']}' is also row 5")]


def test_a_wrong_row_count_is_a_fault(real: list[Row], tmp_path: Path) -> None:
    card = planted(real, tmp_path, {})
    (tmp_path / "math500.jsonl").write_text("".join(json.dumps(row) + "\n" for row in real[:-1]))
    (fault,) = checked(card, tmp_path).by_kind()["row count"]
    assert fault.detail == f"{ROWS - 1} rows; the card says {ROWS}"


def test_contamination_is_found_in_the_planted_rows(real: list[Row], tmp_path: Path, data_dir: Path) -> None:
    question = next(good_rows(data_dir / "gsm8k_test.jsonl"))["question"]
    card = planted(real, tmp_path, {5: {"problem": question}, 25: {"problem": f"Solve this. {question} Thanks."}})
    for name in ("gsm8k_test.jsonl", "aime24.jsonl"):
        (tmp_path / name).write_bytes((data_dir / name).read_bytes())
    faults = [f for f in checked(card, tmp_path, against=["gsm8k-test", "aime24"]).faults if "contaminated" in f.kind]
    assert [(fault.row, fault.kind) for fault in faults] == [(5, "contaminated (exact)"), (25, "contaminated (ngram)")]


def test_without_a_part_the_report_says_what_was_not_checked(real: list[Row], tmp_path: Path) -> None:
    report = check_card(planted(real, tmp_path, {}), data_dir=tmp_path)
    assert len(report.skipped) == 3 and any("golds" in reason for reason in report.skipped)


def test_template_and_lengths_with_a_real_tokenizer(real: list[Row], tmp_path: Path, smollm2: Path) -> None:
    from rlkd.data.models import named_tokenizer

    tokenizer = named_tokenizer(str(smollm2), smollm2)
    card = planted(real, tmp_path, {})
    report = checked(card, tmp_path, tokenizer=tokenizer, max_tokens=200)
    prompts = [card.prompt(card.example(row)) for row in real]
    counts = sorted(
        len(tokenizer.apply_chat_template([{"role": "user", "content": p}], add_generation_prompt=True)["input_ids"])
        for p in prompts
    )
    assert report.lengths["prompt tokens"]["min"] == counts[0]
    assert report.lengths["prompt tokens"]["max"] == counts[-1]
    # an empty answer and its end-of-turn token follow every prompt
    assert len(report.by_kind().get("too long", [])) == sum(count + 1 > 200 for count in counts)
    assert "round_trip" not in report.by_kind() and report.notes


def test_traces_are_encoded_as_training_does() -> None:
    """An inner end of turn, a trace that the template cannot continue and one too long: each is named with its row."""
    from test_template import PREFILLED, make

    card, models = load_card("gsm8k-model-solutions"), ("6b_finetuning", "6b_verification")
    card = card.model_copy(update={"reading": card.reading.model_copy(update={"traces": card.reading.traces[:2]})})
    said = [("<think>\n2", "<think>\n2<|end|>3"), ("2", "<think>\n3"), ("<think>\n2", "<think>\n" + "3" * 400)]
    rows = [
        {
            "question": f"Which is number {number}?",
            "ground_truth": "so\nA: 1",
            **{name: {"is_correct": False, "solution": text} for name, text in zip(models, texts, strict=True)},
        }
        for number, texts in enumerate(said, start=1)
    ]
    report = check_card(card, rows=enumerate(rows, start=1), against=[], tokenizer=make(PREFILLED), max_tokens=400)
    found = {kind: [fault.row for fault in faults] for kind, faults in report.by_kind().items()}
    assert found["end_of_turn_inside"] == [1]
    assert found["not trainable with this template"] == [2]
    assert found["too long"] == [3]
    assert report.lengths["trace tokens"]["min"] == 2 and report.lengths["trace tokens"]["max"] == 401


def test_guess_rate_is_the_share_of_golds_a_guess_can_hit() -> None:
    assert guess_rate({"truth": 18, "number": 80, "letter": 2}) == pytest.approx(0.2)
    assert guess_rate({}) == 0.0
