"""DDK (2407.16154): draw more from the domains in which the student lags the teacher."""

from __future__ import annotations

import heapq
import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from pydantic import Field, PrivateAttr, SkipValidation, model_validator

from rlkd.data.curate.perplexity import RenderPrompt, question_prompt
from rlkd.data.curate.score import TokenScorer
from rlkd.data.curate.step import STEPS, Decision, Step, traces_of
from rlkd.data.fields import lookup, text_of
from rlkd.data.rows import Row
from rlkd.data.text import text_key
from rlkd.errors import DataCardError, NumericsError

MAX_GAP = 10.0


def domain_weights(
    student: Mapping[str, float],
    teacher: Mapping[str, float],
    *,
    before: Mapping[str, float] | None = None,
    smooth: float = 0.5,
    max_gap: float = MAX_GAP,
) -> dict[str, float]:
    """Domain probabilities from the gap between student and teacher.

        first   r_i = softmax_i( gap_i ),   gap_i = l_S[i] / l_T[i],   l = perplexity on rows of the domain
        later   psi_i = r_i exp(gap_i);   r_i <- smooth * psi_i / sum(psi) + (1 - smooth) / N

    Args:
        student, teacher: perplexities by domain (>= 1, the same domains).
        before: the probabilities r of the last round; none: this is the first.
        smooth: 0.5 in the paper; every domain keeps at least (1 - smooth) / N from the second round on.
        max_gap: gaps are cut here, as exp of a ratio of perplexities explodes on a mismatched domain (ours).
    Source: DDK, section 3; updated every K = 1,000 steps there.
    """
    if set(student) != set(teacher) or not student:
        raise NumericsError(f"student and teacher cover other domains: {sorted(student)} and {sorted(teacher)}")
    gaps = {name: min(max_gap, _perplexity_ratio(name, student[name], teacher[name])) for name in sorted(student)}
    if not before:
        return _softmax(gaps)
    if set(before) != set(gaps):
        raise NumericsError(f"domains changed from {sorted(before)} to {sorted(gaps)}")
    log_psi = {name: _log(before[name]) + gap for name, gap in gaps.items()}
    floor = (1.0 - smooth) / len(gaps)
    return {name: smooth * share + floor for name, share in _softmax(log_psi).items()}


def _perplexity_ratio(name: str, student: float, teacher: float) -> float:
    for who, value in (("student", student), ("teacher", teacher)):
        if not (math.isfinite(value) and value >= 1.0):
            raise NumericsError(f"domain '{name}': the {who}'s perplexity is {value}; it must be finite and >= 1")
    return student / teacher


def _log(value: float) -> float:
    return math.log(value) if value > 0 else -math.inf


def _softmax(values: Mapping[str, float]) -> dict[str, float]:
    top = max(values.values())
    raised = {name: math.exp(value - top) for name, value in values.items()}
    total = math.fsum(raised.values())
    return {name: value / total for name, value in raised.items()}


@STEPS.register("domain_weights")
class DomainDraw(Step):
    """Draw about ``rows`` rows, more from the domains in which the student lags the teacher (DDK).

    Perplexities of both on the traces of ``sample`` rows a domain give the weights (``domain_weights``); a row is then
    drawn weight * rows / size of its domain times: perhaps not at all, or repeatedly, as the paper cycles a domain that
    is exhausted. A later round, with the student trained meanwhile, passes the weights of its last one as ``before``.
    Source: DDK (2407.16154), 500 validation samples a domain. Differs: weights act on a file before training, not
    every K steps within; the sample is of the rows themselves, as neither model has been trained on them yet.
    """

    kind: ClassVar[str] = "domain_weights"
    domain: str = Field(description="the field that names a row's domain")
    rows: int = Field(ge=1)
    sample: int = Field(default=500, ge=1)
    before: dict[str, float] = Field(default_factory=dict)
    smooth: float = Field(default=0.5, ge=0.0, le=1.0)
    max_gap: float = Field(default=MAX_GAP, gt=0.0)
    seed: int = 0
    teacher: SkipValidation[TokenScorer] = Field(exclude=True)
    student: SkipValidation[TokenScorer] = Field(exclude=True)
    prompt: SkipValidation[RenderPrompt] = Field(default=question_prompt, exclude=True)
    _copies: dict[str, float] = PrivateAttr(default_factory=dict)

    @model_validator(mode="after")
    def _sums_to_one(self) -> DomainDraw:
        if self.before and not math.isclose(math.fsum(self.before.values()), 1.0, abs_tol=1e-3):
            raise ValueError(f"the weights in 'before' sum to {math.fsum(self.before.values()):.4g}, not to 1")
        return self

    def survey(self, rows: Callable[[], Iterator[Row]], folder: Path) -> dict[str, Any]:  # noqa: ARG002
        sizes: Counter[str] = Counter()
        chosen: dict[str, list[tuple[float, int, Row]]] = {}  # the rows with the lowest draws: a sample in one pass
        for number, row in enumerate(rows()):
            if (name := self._domain(row)) is None:
                continue
            sizes[name] += 1
            heap, item = chosen.setdefault(name, []), (-self._chance(row, "sample"), -number, row)
            if len(heap) < self.sample:
                heapq.heappush(heap, item)
            else:
                heapq.heappushpop(heap, item)
        if not sizes:
            raise DataCardError(f"step '{self.kind}': no row has the field '{self.domain}'")
        found = {name: self._perplexities(name, [row for *_, row in heap]) for name, heap in sorted(chosen.items())}
        student = {name: each["student"] for name, each in found.items()}
        teacher = {name: each["teacher"] for name, each in found.items()}
        weights = domain_weights(student, teacher, before=self.before, smooth=self.smooth, max_gap=self.max_gap)
        shown = ", ".join(
            f"{name} {sizes[name] / sizes.total():.1%} -> {weight:.1%}" for name, weight in weights.items()
        )
        return {"sizes": dict(sizes), "perplexities": found, "weights": weights, "summary": f"shares: {shown}"}

    def _perplexities(self, name: str, rows: Sequence[Row]) -> dict[str, float]:
        pairs = [(self.prompt(row), trace["text"]) for row in rows for trace in traces_of(row)]
        return {"student": _perplexity(name, self.student, pairs), "teacher": _perplexity(name, self.teacher, pairs)}

    def prepare(self, survey: Mapping[str, Any]) -> None:
        self._copies = {name: weight * self.rows / survey["sizes"][name] for name, weight in survey["weights"].items()}

    def decide(self, rows: Sequence[Row]) -> list[Decision]:
        return [self._decide(row) for row in rows]

    def _decide(self, row: Row) -> Decision:
        """floor(c) or one more copies, c on average."""
        if (name := self._domain(row)) is None:
            return Decision.drop(f"no field '{self.domain}'")
        whole, rest = divmod(self._copies[name], 1.0)
        copies = int(whole) + (self._chance(row, "draw") < rest)
        return Decision(row, copies=copies) if copies else Decision.drop("not drawn", domain=name)

    def _domain(self, row: Row) -> str | None:
        value = lookup(row, self.domain, default=None)
        return None if value is None else text_of(value)

    def _chance(self, row: Row, what: str) -> float:
        """A number in [0, 1) that depends on seed and row alone, so that a resume draws the same."""
        return int.from_bytes(text_key(f"{what} {self.seed} {row['row']}")[:7], "big") / 2**56


def _perplexity(name: str, scorer: TokenScorer, pairs: Sequence[tuple[str, str]]) -> float:
    """exp of the mean over all tokens."""
    logprobs = [logp for scores in scorer(pairs) for logp in scores.logprobs]
    if not logprobs:
        raise DataCardError(f"domain '{name}': its sampled rows have no trace with a token; nothing to measure")
    return math.exp(-math.fsum(logprobs) / len(logprobs))
