"""Whose sentence is it? Sentence probabilities under teacher and student, and what is selected by them.

    p_M(j) = exp( mean over the tokens of sentence a_j of log p_M(token | prompt, a_<j, earlier tokens) )

Only probabilities of sentences are compared, never token ids, so the tokenizers may differ.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

from pydantic import Field, SkipValidation, model_validator

from rlkd.data.curate.perplexity import RenderPrompt, question_prompt
from rlkd.data.curate.score import TokenScorer, TokenScores, span_probability
from rlkd.data.curate.step import MODEL_ROWS, STEPS, Decision, Removal, Step, keep_traces, traces_of
from rlkd.data.rows import Row
from rlkd.data.text import sentences, text_key

Origin = Literal["teacher", "student", "common"]
Choice = Literal["count", "ratio", "longest", "length_matched", "random"]


@dataclass(frozen=True)
class Sentence:
    """One sentence of a trace, its probability under teacher and student, and whose it is."""

    span: tuple[int, int]
    teacher: float
    student: float
    origin: Origin


def trace_sentences(text: str, teacher: TokenScores, student: TokenScores, beta: float) -> list[Sentence]:
    """The sentences of a trace with their origin.

        D = p_teacher - p_student;   teacher: D > beta;   student: D < -beta;   common: otherwise

    Sentences in which one of the models begins no token are left out.
    Source: provenance tracing (2512.20908), beta = 0.1; 0.05 and 0.15 also beat random there.
    """
    found = []
    for span in sentences(text):
        p_teacher, p_student = span_probability(teacher, span), span_probability(student, span)
        if p_teacher is None or p_student is None:
            continue
        gap = p_teacher - p_student
        origin: Origin = "teacher" if gap > beta else "student" if gap < -beta else "common"
        found.append(Sentence(span, p_teacher, p_student, origin))
    return found


@STEPS.register("provenance_select")
class ProvenanceSelect(Step):
    """For every question keep one of its candidate traces, by its teacher sentences or by a baseline.

    count: most teacher sentences (the paper's choice). ratio: largest share of them. longest: most characters.
    length_matched: of the candidates nearest in length to the one that ``count`` picks, another one; it shows how
    much of the gain is mere length. random: any.
    Source: 2512.20908 (pre-training selection), DASD (2601.09088, divergence-aware sampling).
    Differs: ties go to the earlier candidate; ``length_matched`` is ours.
    """

    kind: ClassVar[str] = "provenance_select"
    rows_at_once: ClassVar[int | None] = MODEL_ROWS
    choose: Choice = "count"
    beta: float = Field(default=0.1, gt=0.0, lt=1.0)
    seed: int = 0
    teacher: SkipValidation[TokenScorer | None] = Field(default=None, exclude=True)
    student: SkipValidation[TokenScorer | None] = Field(default=None, exclude=True)
    prompt: SkipValidation[RenderPrompt] = Field(default=question_prompt, exclude=True)

    @model_validator(mode="after")
    def _scorers_given(self) -> ProvenanceSelect:
        if self.choose in ("count", "ratio", "length_matched") and (self.teacher is None or self.student is None):
            raise ValueError(f"choose='{self.choose}' needs a teacher and a student scorer")
        return self

    def decide(self, rows: Sequence[Row]) -> list[Decision]:
        if self.teacher is None or self.student is None:
            return [self._keep(row, [{} for _ in traces_of(row)]) for row in rows]
        pairs = [(self.prompt(row), trace["text"]) for row in rows for trace in traces_of(row)]
        scored = zip(pairs, self.teacher(pairs), self.student(pairs), strict=True)
        counts = iter([_counts(trace_sentences(text, t, s, self.beta)) for (_, text), t, s in scored])
        return [self._keep(row, [next(counts) for _ in row["traces"]]) for row in rows]

    def _keep(self, row: Row, counts: Sequence[dict[str, int]]) -> Decision:
        traces = [
            {**trace, "sentences": count} if count else trace
            for trace, count in zip(row["traces"], counts, strict=True)
        ]
        if not traces:
            return Decision.drop("no traces")
        rng = random.Random(text_key(f"{self.seed} {row['question']}"))
        best = CHOICES[self.choose](traces, rng)
        gone = {at: None if at == best else Removal(f"not chosen ({self.choose})", {}) for at in range(len(traces))}
        return keep_traces({**row, "traces": traces}, gone)


def _counts(found: Sequence[Sentence]) -> dict[str, int]:
    return {name: sum(each.origin == name for each in found) for name in ("teacher", "student", "common")}


def _teacher_count(trace: Row) -> int:
    return int(trace["sentences"]["teacher"])


def _teacher_ratio(trace: Row) -> float:
    total = sum(trace["sentences"].values())
    return trace["sentences"]["teacher"] / total if total else 0.0


def _argmax(traces: Sequence[Row], key: Callable[[Row], float]) -> int:
    return max(range(len(traces)), key=lambda at: (key(traces[at]), -at))


def _by_count(traces: Sequence[Row], _: random.Random) -> int:
    return _argmax(traces, _teacher_count)


def _by_ratio(traces: Sequence[Row], _: random.Random) -> int:
    return _argmax(traces, _teacher_ratio)


def _by_length(traces: Sequence[Row], _: random.Random) -> int:
    return _argmax(traces, lambda trace: len(trace["text"]))


def _by_matched_length(traces: Sequence[Row], rng: random.Random) -> int:
    picked = _by_count(traces, rng)
    others = [at for at in range(len(traces)) if at != picked] or [picked]
    wanted = len(traces[picked]["text"])
    return min(others, key=lambda at: (abs(math.log((len(traces[at]["text"]) + 1) / (wanted + 1))), at))


def _by_chance(traces: Sequence[Row], rng: random.Random) -> int:
    return rng.randrange(len(traces))


CHOICES: dict[Choice, Callable[[Sequence[Row], random.Random], int]] = {
    "count": _by_count,
    "ratio": _by_ratio,
    "longest": _by_length,
    "length_matched": _by_matched_length,
    "random": _by_chance,
}
