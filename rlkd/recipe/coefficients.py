"""Coefficients, their schedules, and the switches that every clipped surrogate shares."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from rlkd.recipe.base import Section

Coef = Annotated[float, Field(ge=0)]


class ConstantCoef(Section):
    """The same weight at every step."""

    kind: Literal["constant"] = "constant"
    value: Coef


class AnnealedCoef(Section):
    """``max(start - delta * step, end)`` (KDRL section 3.3)."""

    kind: Literal["annealed"] = "annealed"
    start: Coef
    end: Coef
    delta: Annotated[float, Field(gt=0)]

    @model_validator(mode="after")
    def _falls(self) -> AnnealedCoef:
        if self.end > self.start:
            raise ValueError(f"end {self.end} must not exceed start {self.start}")
        return self


class SwitchedCoef(Section):
    """``value`` before step ``at``, 0 from there on."""

    kind: Literal["switched"] = "switched"
    value: Coef
    at: Annotated[int, Field(ge=0)]


class LinearCoef(Section):
    """From ``start`` at step 0 to ``end`` at step ``steps``, then flat."""

    kind: Literal["linear"] = "linear"
    start: Coef
    end: Coef
    steps: Annotated[int, Field(gt=0)]


CoefSchedule = Annotated[ConstantCoef | AnnealedCoef | SwitchedCoef | LinearCoef, Field(discriminator="kind")]


def always_zero(coef: CoefSchedule) -> bool:
    """Whether the weight is 0 at every step, so that its term need not be computed."""
    match coef:
        case ConstantCoef(value=value):
            return value == 0
        case SwitchedCoef(value=value, at=at):
            return value == 0 or at == 0
    return coef.start == coef.end == 0


class ImportanceCorrection(Section):
    """Weight for the gap between the rollout engine's and the learner's probabilities of the same weights."""

    kind: Literal["none", "truncate", "mask"] = "none"
    level: Literal["token", "sequence"] = "token"
    low: Coef = 0.0
    high: Annotated[float, Field(gt=0)] = 2.0


class PolicyGradient(Section):
    """Shared switches of the clipped surrogates."""

    clip_low: Annotated[float, Field(ge=0, lt=1)] = 0.2
    clip_high: Annotated[float, Field(ge=0)] = 0.2
    dual_clip: Annotated[float, Field(gt=1)] | None = Field(
        default=None,
        description="bound on the ratio of tokens with a negative advantage, usually 3; pi-Distill's bare ratios are "
        "far from 1 from the start, so that without a bound a few such tokens can be nearly all of its gradient",
    )
    ratio: Literal["token", "sequence"] = Field(default="token", description="'sequence' is GSPO's")
    reduction: Literal["token", "sequence", "constant"] = Field(
        default="token",
        description="token: mean over all trained tokens; sequence: mean of sequence means; constant: Dr.GRPO's",
    )
    kl_coef: Coef = Field(default=0.0, description="weight of reverse KL to the reference (the stage's first weights)")
    correction: ImportanceCorrection = ImportanceCorrection()
