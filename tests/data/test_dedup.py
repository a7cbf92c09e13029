"""Exact and near duplicates: what is equal, what is near, and how many near pairs the index may miss."""

from __future__ import annotations

import random
import re
from pathlib import Path

import pytest

from rlkd.data.cards import load_card
from rlkd.data.curate import build_step
from rlkd.data.curate.dedup import lsh_bands
from rlkd.data.rows import Row, good_rows
from rlkd.data.text import normal_form, text_key


def rows_of(questions: list[str]) -> list[Row]:
    return [{"row": at, "question": question} for at, question in enumerate(questions, start=1)]


def removed(spec: dict[str, object], questions: list[str]) -> dict[int, int]:
    """Row -> the row that it repeats."""
    decisions = build_step(spec).decide(rows_of(questions))
    return {at: d.removals[0].evidence["of_row"] for at, d in enumerate(decisions, start=1) if d.row is None}


def test_exact_ignores_case_space_and_unicode_form_but_not_signs() -> None:
    questions = ["Find x + 1.", " find  X + 1.\n", "Find x - 1.", "Find x + 1", "ﬁnd x + 1.", "Find x+1."]
    assert removed({"step": "exact_dedup"}, ["What is 10² + 1?", "What is 102 + 1?"]) == {}
    assert removed({"step": "exact_dedup"}, questions) == {2: 1, 5: 1}
    assert normal_form("  A\t B\n") == "a b" and len(text_key("")) == 16


def test_exact_duplicates_of_a_real_set(data_dir: Path) -> None:
    """MAWPS repeats 87 questions; counted here without the step."""
    card = load_card("mawps")
    questions = [card.example(row)["question"] for row in good_rows(data_dir / "mawps.jsonl")]
    first: dict[str, int] = {}
    expected = {}
    for at, question in enumerate(questions, start=1):
        key = " ".join(question.lower().split())
        if key in first:
            expected[at] = first[key]
        first.setdefault(key, at)
    assert removed({"step": "exact_dedup"}, questions) == expected
    assert len(expected) == 87


def jaccard_pair(rng: random.Random, shared: int, each: int) -> tuple[str, str]:
    """Two texts of single-word shingles that share ``shared`` of ``each`` words."""
    common = [f"w{rng.getrandbits(48):x}" for _ in range(shared)]
    own = [[f"w{rng.getrandbits(48):x}" for _ in range(each - shared)] for _ in range(2)]
    return " ".join(common + own[0]), " ".join(common + own[1])


@pytest.mark.parametrize(("shared", "low", "high"), [(95, 0.99, 1.0), (92, 0.99, 1.0), (80, 0.0, 0.01)])
def test_near_duplicates_are_found_by_their_overlap(shared: int, low: float, high: float) -> None:
    """Of 100 words, 95 shared is J = 95/105 = 0.905, 92 is 0.852, 80 is 0.667; the threshold is 0.8."""
    rng = random.Random(shared)
    pairs = [jaccard_pair(rng, shared, 100) for _ in range(300)]
    step = {"step": "near_dedup", "threshold": 0.8, "ngram": 1}
    found = removed(step, [left for left, _ in pairs] + [right for _, right in pairs])
    right_ones = sum(found.get(at + 300) == at for at in range(1, 301))
    assert low <= right_ones / 300 <= high
    assert len(found) == right_ones, "no pair of unrelated texts was matched"


def test_bands_keep_the_promised_share_of_pairs_at_the_threshold() -> None:
    for threshold in (0.5, 0.7, 0.8, 0.9):
        bands = lsh_bands(threshold, 256)
        slots = 256 // bands
        assert bands * slots == 256 and (1 - threshold**slots) ** bands <= 0.01
        wider = next(s for s in (256, 128, 64, 32, 16, 8, 4, 2) if s > slots and 256 % s == 0 and s == 2 * slots)
        assert (1 - threshold**wider) ** (256 // wider) > 0.01, "the next fewer bands would miss more"


def test_two_instances_of_a_template_are_told_apart_by_numbers() -> None:
    text = "Anna has {} apples and buys {} more. How many apples does Anna have now?"
    questions = [text.format(3, 4), text.format(13, 28), text.format(3, 4).replace("now", "then")]
    assert removed({"step": "near_dedup", "threshold": 0.7}, questions) == {3: 1}


def test_one_other_number_or_sign_in_a_long_question_is_another_problem(data_dir: Path) -> None:
    """Real questions of some fifty words: one number changed leaves nearly all n-grams, a comma dropped too."""
    card = load_card("gsm8k-train")
    rows = [card.example(row) for _, row in zip(range(200), good_rows(data_dir / "gsm8k_train.jsonl"), strict=False)]
    questions = [row["question"] for row in rows]
    swapped = [re.sub(r"\d+", lambda match: str(int(match[0]) + 7), text, count=1) for text in questions]
    assert not [
        at
        for at in removed({"step": "near_dedup"}, questions + swapped)
        if at > 200 and at - 200 in changed(questions, swapped)
    ]
    copies = [text.replace(",", "", 1) + " Think well." for text in questions]
    found = removed({"step": "near_dedup", "threshold": 0.7}, questions + copies)
    assert sum(found.get(at + 200) == at for at in range(1, 201)) > 190
    signs = [
        f"Find all real numbers x that satisfy the equation $x^2 {a} 3x {b} 2 = 0$." for a, b in ("-+", "+-", "++")
    ]
    assert removed({"step": "near_dedup"}, [*signs, signs[0].replace("Find", "Now find")]) == {4: 1}


def changed(before: list[str], after: list[str]) -> set[int]:
    return {at for at, (old, new) in enumerate(zip(before, after, strict=True), start=1) if old != new}


def test_memory_of_kept_rows_gives_the_same_answer() -> None:
    rng = random.Random(0)
    pairs = [jaccard_pair(rng, 95, 100) for _ in range(20)]
    rows = rows_of([left for left, _ in pairs] + [right for _, right in pairs])
    for name in ("exact_dedup", "near_dedup"):
        whole, fresh = build_step({"step": name}), build_step({"step": name})
        decisions = whole.decide(rows[:20]) + whole.decide(rows[20:])
        fresh.remember([decision.row for decision in decisions[:20] if decision.row is not None])
        assert fresh.decide(rows[20:]) == decisions[20:]
