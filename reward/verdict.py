"""What a verifier says about one completion."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, get_args

from rlkd.errors import VerifierError

Reason = Literal[
    "right",  # accepted
    "wrong",  # read, and not the answer
    "partial",  # between the two
    "unparsed",  # no committed, readable answer: scores 0
    "timeout",  # over the time limit: 0 when the completion burnt the time, abstained when the machine did
    "memory",  # over the memory limit
    "bad_gold",  # the example itself cannot be used: always abstained
    "error",  # the verifier or its machinery failed: always abstained
]
REASONS: tuple[str, ...] = get_args(Reason)


@dataclass(frozen=True, slots=True)
class Verdict:
    """A score in [0, 1], or an abstention that says why. Never both.

    ``shaping`` holds weighted terms that are no judgement of the answer (length, repetition); filters and
    advantages that should see correctness alone read ``score``, the trained number is ``reward``.
    """

    score: float | None
    parsed: str | None
    reason: Reason
    abstained: bool = False
    detail: str = ""
    shaping: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.reason not in REASONS:
            raise VerifierError(f"verdict reason {self.reason!r} is none of {', '.join(REASONS)}")
        if self.abstained != (self.score is None):
            raise VerifierError(
                f"a verdict has a score or abstains; got score={self.score}, abstained={self.abstained}"
            )
        if self.score is not None and not (math.isfinite(self.score) and 0.0 <= self.score <= 1.0):
            raise VerifierError(f"a score lies in [0, 1]; got {self.score!r}")

    @property
    def reward(self) -> float | None:
        """Score plus shaping terms; None when abstained."""
        return None if self.score is None else self.score + sum(self.shaping.values())

    @classmethod
    def abstain(cls, reason: Reason, detail: str = "", parsed: str | None = None) -> Verdict:
        """No judgement: the sample must be dropped or retried, never trained on as a zero."""
        return cls(score=None, parsed=parsed, reason=reason, abstained=True, detail=detail)

    @classmethod
    def right(cls, parsed: str | None = None, detail: str = "") -> Verdict:
        return cls(score=1.0, parsed=parsed, reason="right", detail=detail)

    @classmethod
    def wrong(cls, parsed: str | None = None, detail: str = "", reason: Reason = "wrong") -> Verdict:
        return cls(score=0.0, parsed=parsed, reason=reason, detail=detail)

    @classmethod
    def graded(cls, score: float, parsed: str | None = None, detail: str = "") -> Verdict:
        """A verdict from a number: 1 is right, 0 is wrong, anything between is partial."""
        reason: Reason = "right" if score == 1.0 else "wrong" if score == 0.0 else "partial"
        return cls(score=float(score), parsed=parsed, reason=reason, detail=detail)

    def to_json(self) -> dict[str, Any]:
        """A plain dictionary, as the worker sends it and the audit prints it."""
        return asdict(self)

    @classmethod
    def from_json(cls, row: Mapping[str, Any]) -> Verdict:
        return cls(**row)
