"""DDK (2407.16154): draw more from the domains in which the student lags the teacher."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from rlkd.errors import NumericsError

T = TypeVar("T")

MAX_GAP = 10.0


@dataclass
class DomainWeights:
    """Domain probabilities from the gap between student and teacher.

        init    r_i = softmax_i( gap_i ),   gap_i = l_S[i] / l_T[i],   l = perplexity on the domain's validation set
        update  psi_i = r_i exp(gap_i);   r_i <- smooth * psi_i / sum(psi) + (1 - smooth) / N

    Args:
        smooth: 0.5 in the paper; every domain keeps at least (1 - smooth) / N from the first update on.
        max_gap: gaps are cut here, as exp of a ratio of perplexities explodes on a mismatched domain (ours).
    Source: DDK, section 3; updated every K = 1,000 steps there.
    """

    smooth: float = 0.5
    max_gap: float = MAX_GAP
    weights: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not 0.0 <= self.smooth <= 1.0:
            raise NumericsError(f"smooth lies in [0, 1]; got {self.smooth}")

    def update(self, student: Mapping[str, float], teacher: Mapping[str, float]) -> dict[str, float]:
        """Take in perplexities by domain (>= 1, the same domains) and return the new probabilities."""
        if set(student) != set(teacher) or not student:
            raise NumericsError(f"student and teacher cover other domains: {sorted(student)} and {sorted(teacher)}")
        gaps = {name: self._gap(name, student[name], teacher[name]) for name in sorted(student)}
        if not self.weights:
            self.weights = _softmax(gaps)
        elif set(self.weights) != set(gaps):
            raise NumericsError(f"domains changed from {sorted(self.weights)} to {sorted(gaps)}")
        else:
            log_psi = {name: _log(self.weights[name]) + gap for name, gap in gaps.items()}
            floor = (1.0 - self.smooth) / len(gaps)
            self.weights = {name: self.smooth * share + floor for name, share in _softmax(log_psi).items()}
        return dict(self.weights)

    def _gap(self, name: str, student: float, teacher: float) -> float:
        for who, value in (("student", student), ("teacher", teacher)):
            if not (math.isfinite(value) and value >= 1.0):
                raise NumericsError(f"domain '{name}': the {who}'s perplexity is {value}; it must be finite and >= 1")
        return min(self.max_gap, student / teacher)


def _log(value: float) -> float:
    return math.log(value) if value > 0 else -math.inf


def _softmax(values: Mapping[str, float]) -> dict[str, float]:
    top = max(values.values())
    raised = {name: math.exp(value - top) for name, value in values.items()}
    total = math.fsum(raised.values())
    return {name: value / total for name, value in raised.items()}


@dataclass
class DomainSampler(Generic[T]):
    """Draws rows by domain probability, cycling a domain that is exhausted. Its state can be saved and put back."""

    domains: Mapping[str, Sequence[T]]
    seed: int = 0
    position: dict[str, int] = field(default_factory=dict)
    drawn: int = 0

    def __post_init__(self) -> None:
        empty = [name for name, rows in self.domains.items() if not rows]
        if empty:
            raise NumericsError(f"domains without rows: {', '.join(empty)}")

    def draw(self, count: int, weights: Mapping[str, float]) -> Iterator[tuple[str, T]]:
        """``count`` rows with their domain. The n-th draw depends on the seed and on n alone."""
        names = sorted(self.domains)
        for _ in range(count):
            rng = random.Random(f"{self.seed} {self.drawn}")
            name = rng.choices(names, [weights[each] for each in names])[0]
            at = self.position.get(name, 0)
            self.position[name], self.drawn = at + 1, self.drawn + 1
            yield name, self.domains[name][at % len(self.domains[name])]
