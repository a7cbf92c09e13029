"""DED (2508.09883): pick a teacher by a small test, drop easy questions, keep the farthest traces."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from rlkd.data.curate.step import STEPS, Decision, Removal, Step, keep_traces, traces_of
from rlkd.data.rows import Row
from rlkd.data.text import sentences
from rlkd.errors import DataCardError, MissingExtraError


@dataclass(frozen=True)
class TeacherTrial:
    """One teacher's smoke test: the student's score after training on a small sample of its traces."""

    teacher: str
    score: float
    sample_size: int


def smoke_test(
    samples: Mapping[str, Sequence[Row]],
    distil_and_score: Callable[[Sequence[Row]], float],
    *,
    size: int,
) -> list[TeacherTrial]:
    """Try every teacher on samples of one size over the same questions; the best comes first.

    Args:
        samples: rows with traces, by teacher.
        distil_and_score: trains a fresh student on the rows and returns its score on held-out questions.
        size: rows a teacher; questions that not all teachers answered are left out, so that only the traces differ.
    Source: DED step 1. The size of the sample is not given there.
    """
    shared = set.intersection(*({row["question"] for row in rows} for rows in samples.values()))
    if len(shared) < size:
        raise DataCardError(f"the teachers share {len(shared)} questions; a smoke test of size {size} needs more")
    chosen = sorted(shared)[:size]
    trials = []
    for teacher, rows in samples.items():
        by_question = {row["question"]: row for row in rows}
        score = distil_and_score([by_question[question] for question in chosen])
        trials.append(TeacherTrial(teacher, score, size))
    return sorted(trials, key=lambda trial: -trial.score)


def token_entropy(logprobs: Sequence[float]) -> float:
    """Mean negative log-probability (nats) of a teacher's own tokens: an unbiased estimate of its token entropy.

    DED finds that the better teacher's corpus has the lower one (0.477 against 0.705). The model that it was
    measured with is not given; here the samples must come from the model that scores them, at temperature 1.
    """
    return -float(np.mean(logprobs))


@STEPS.register("farthest_traces")
class FarthestTraces(Step):
    """Keep the ``keep`` traces of a question that are farthest from each other by normalised edit distance.

    Greedy farthest-point choice: the pair with the largest distance first, then the trace whose nearest chosen one
    is farthest. Distance: Levenshtein over ``unit``, divided by the longer length.
    Source: DED step 4; unit, normalisation and exact rule are not given there. About 4 traces a question were kept.
    """

    kind: ClassVar[str] = "farthest_traces"
    keep: int = Field(default=4, ge=1)
    unit: str = Field(default="word", pattern="^(character|word|sentence)$")

    def decide(self, rows: Sequence[Row]) -> list[Decision]:
        return [self._decide(row) for row in rows]

    def _decide(self, row: Row) -> Decision:
        traces = traces_of(row)
        if len(traces) <= self.keep:
            return Decision(row)
        chosen = farthest(edit_distances([trace["text"] for trace in traces], self.unit), self.keep)
        gone = {at: None if at in chosen else Removal("near a kept trace", {}) for at in range(len(traces))}
        return keep_traces(row, gone)


def edit_distances(texts: Sequence[str], unit: str = "word") -> NDArray[np.float64]:
    """[N, N] normalised Levenshtein distances in [0, 1]."""
    try:
        from rapidfuzz.distance import Levenshtein
    except ImportError as error:
        raise MissingExtraError("farthest_traces needs rapidfuzz: pip install 'rlkd[train]'") from error
    items = [_units(text, unit) for text in texts]
    out = np.zeros((len(texts), len(texts)))
    for i in range(len(texts)):
        for j in range(i):
            out[i, j] = out[j, i] = Levenshtein.normalized_distance(items[i], items[j])
    return out


def _units(text: str, unit: str) -> Sequence[str]:
    if unit == "character":
        return text
    return text.split() if unit == "word" else [text[begin:end].strip() for begin, end in sentences(text)]


def farthest(distances: NDArray[np.float64], count: int) -> list[int]:
    """Greedy max-min choice of ``count`` points, in the order of choice; ties go to the earlier point."""
    if count >= len(distances):
        return list(range(len(distances)))
    if count == 1:  # one point is no pair: take the one nearest to all others, the typical trace
        return [int(distances.sum(axis=1).argmin())]
    first, second = np.unravel_index(int(distances.argmax()), distances.shape)
    chosen = [int(first), int(second)]
    while len(chosen) < count:
        nearest = distances[:, chosen].min(axis=1)
        nearest[chosen] = -1.0
        chosen.append(int(nearest.argmax()))
    return chosen
