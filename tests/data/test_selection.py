"""DED, DASD and DDK: each rule against a value worked out by hand or by brute force."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Sequence

import numpy as np
import pytest

from rlkd.data.curate import build_step
from rlkd.data.curate.ddk import domain_weights
from rlkd.data.curate.ded import edit_distances, farthest
from rlkd.data.curate.generate import Completion
from rlkd.data.rows import Row
from rlkd.errors import NumericsError


def levenshtein(a: Sequence[str], b: Sequence[str]) -> int:
    """The textbook table."""
    row = list(range(len(b) + 1))
    for i, left in enumerate(a, start=1):
        row, last = [i], row
        for j, right in enumerate(b, start=1):
            row.append(min(last[j] + 1, row[j - 1] + 1, last[j - 1] + (left != right)))
    return row[-1]


def test_edit_distances_of_real_traces(gsm8k_traces: list[Row]) -> None:
    texts = [trace["text"] for trace in gsm8k_traces[5]["traces"]]
    for unit, split in (("word", str.split), ("character", list)):
        found = edit_distances(texts, unit)
        for i, j in itertools.combinations(range(4), 2):
            a, b = split(texts[i]), split(texts[j])
            assert found[i, j] == found[j, i] == pytest.approx(levenshtein(a, b) / max(len(a), len(b)))
        assert (np.diag(found) == 0).all()


def test_farthest_points_by_hand() -> None:
    points = np.array([0.0, 1.0, 2.0, 10.0, 5.2])
    distances = np.abs(points[:, None] - points[None])
    # 0 and 10 are farthest; then 5.2 (nearest chosen 4.8 away), then 2 (2 away)
    assert set(farthest(distances, 2)) == {0, 3}
    assert farthest(distances, 4)[2:] == [4, 2]
    assert farthest(distances, 9) == [0, 1, 2, 3, 4]
    assert farthest(distances, 1) == [2]  # sums: 18.2, 15.2, 14.2, 31.8, 17.4


def test_farthest_is_within_a_half_of_the_best_choice() -> None:
    """Greedy max-min is a 2-approximation: its smallest distance is at least half of the best possible one."""
    rng = np.random.default_rng(0)
    for _ in range(20):
        points = rng.normal(size=(8, 2))
        distances = np.linalg.norm(points[:, None] - points[None], axis=-1)

        def spread(chosen: Sequence[int], distances: np.ndarray = distances) -> float:
            return min(float(distances[i, j]) for i, j in itertools.combinations(chosen, 2))

        best = max(spread(chosen) for chosen in itertools.combinations(range(8), 4))
        assert spread(farthest(distances, 4)) >= 0.5 * best


def test_farthest_traces_beat_random_ones_on_real_traces(gsm8k_traces: list[Row]) -> None:
    """Mean distance between the two kept of four traces, over 200 questions, against a random pair."""
    rows = gsm8k_traces[:200]
    kept = build_step({"step": "farthest_traces", "keep": 2}).decide(rows)
    rng = random.Random(0)
    chosen, chance = [], []
    for row, decision in zip(rows, kept, strict=True):
        assert decision.row is not None
        texts = [trace["text"] for trace in row["traces"]]
        chosen.append(edit_distances([trace["text"] for trace in decision.row["traces"]])[0, 1])
        chance.append(edit_distances(rng.sample(texts, 2))[0, 1])
    assert np.mean(chosen) > 1.1 * np.mean(chance)


def test_ddk_weights_by_hand() -> None:
    student, teacher = {"a": 4.0, "b": 3.0}, {"a": 2.0, "b": 3.0}
    first = domain_weights(student, teacher)
    total = math.exp(2) + math.exp(1)
    assert first == pytest.approx({"a": math.exp(2) / total, "b": math.exp(1) / total})
    psi = {"a": first["a"] * math.exp(2), "b": first["b"] * math.exp(1)}
    expected = {name: 0.5 * value / sum(psi.values()) + 0.5 / 2 for name, value in psi.items()}
    assert domain_weights(student, teacher, before=first, smooth=0.5) == pytest.approx(expected)


def test_ddk_keeps_a_floor_and_survives_a_mismatched_domain() -> None:
    found: dict[str, float] = {}
    for _ in range(50):
        student, teacher = {"a": 1e6, "b": 2.0, "c": 2.0}, {"a": 1.5, "b": 2.0, "c": 2.0}
        found = domain_weights(student, teacher, before=found)
        assert sum(found.values()) == pytest.approx(1.0) and all(map(math.isfinite, found.values()))
    assert min(found.values()) >= 0.5 / 3
    assert found["a"] == max(found.values())


@pytest.mark.parametrize(
    ("student", "teacher"),
    [
        ({}, {}),
        ({"a": 2.0}, {"b": 2.0}),
        ({"a": 0.5}, {"a": 2.0}),
        ({"a": math.inf}, {"a": 2.0}),
        ({"a": 2.0}, {"a": math.nan}),
    ],
)
def test_ddk_refuses_what_is_no_perplexity(student: dict[str, float], teacher: dict[str, float]) -> None:
    with pytest.raises(NumericsError):
        domain_weights(student, teacher)


def test_temperature_stages() -> None:
    traces = [{"text": "cold", "temperature": 0.6}, {"text": "hot", "temperature": 1.0}, {"text": "unknown"}]
    row: Row = {"row": 1, "id": "1", "question": "q", "traces": traces}
    for temperature, text in ((0.6, "cold"), (1.0, "hot")):
        (decision,) = build_step({"step": "temperature_filter", "temperature": temperature}).decide([row])
        assert decision.row is not None and [trace["text"] for trace in decision.row["traces"]] == [text]


class Speaker:
    """Says one word over and over; finishes when the limit allows ``needs`` words."""

    def __init__(self, word: str, needs: dict[str, int]) -> None:
        self.word, self.needs, self.prompts = word, needs, list[str]()

    def __call__(
        self, prompts: Sequence[str], *, max_tokens: Sequence[int], temperature: float, seed: int
    ) -> list[Completion]:
        assert temperature == 1.0 and seed >= 0
        self.prompts += prompts
        out = []
        for prompt, limit in zip(prompts, max_tokens, strict=True):
            needed = self.needs.get(prompt.split()[0], 5)
            said = min(needed, limit)
            out.append(Completion(f"{self.word} " * said, said, needed <= limit))
        return out


def offsets(text: str) -> list[tuple[int, int]]:
    return [(at * 2, at * 2 + 2) for at in range(len(text) // 2)]


def test_mixed_policy_cuts_what_ran_over_and_lets_the_teacher_go_on() -> None:
    rows: list[Row] = [
        {"row": at, "id": str(at), "question": name, "traces": [{"text": "t " * 10}]}
        for at, name in enumerate(("short", *(f"long{n}" for n in range(200))))
    ]
    student = Speaker("s", {"short": 15} | {f"long{n}": 16 for n in range(200)})  # the limit is 1.5 x 10 = 15
    teacher = Speaker("t", {})
    parts = {"student": student, "teacher": teacher, "token_offsets": offsets}
    finished, *mixed = build_step({"step": "mixed_policy", "max_continuation": 50}, **parts).decide(rows)
    assert finished.row is None and finished.removals[0].reason == "student finishes"
    cuts = []
    for row, decision in zip(rows[1:], mixed, strict=True):
        assert decision.row is not None
        (trace,) = decision.row["traces"]
        prefix = trace["text"][: trace["student_chars"]]
        cuts.append(len(prefix) // 2)
        assert prefix == "s " * cuts[-1] and trace["text"] == prefix + "t " * 5
        assert f"{row['question']}\n{prefix}" in teacher.prompts
    # c ~ Uniform(len / 2, len) over 15 tokens: 7 .. 15, all of them, evenly
    assert set(cuts) == set(range(7, 16))
    assert abs(np.mean(cuts) - 11) < 4 * math.sqrt((9**2 - 1) / 12 / 200)
