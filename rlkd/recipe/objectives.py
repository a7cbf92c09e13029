"""Objectives and advantages as a recipe names them. Each is a preset over the functions of ``rlkd.objectives``."""

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


CoefSchedule = Annotated[ConstantCoef | AnnealedCoef | SwitchedCoef, Field(discriminator="kind")]


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
    dual_clip: Annotated[float, Field(gt=1)] | None = None
    ratio: Literal["token", "sequence"] = Field(default="token", description="'sequence' is GSPO's")
    reduction: Literal["token", "sequence", "constant"] = Field(
        default="token",
        description="token: mean over all trained tokens; sequence: mean of sequence means; constant: Dr.GRPO's",
    )
    kl_coef: Coef = Field(default=0.0, description="weight of reverse KL to the reference (the stage's first weights)")
    correction: ImportanceCorrection = ImportanceCorrection()


class GrpoObjective(PolicyGradient):
    """GRPO and its published variants."""

    kind: Literal["grpo"] = "grpo"


class KdrlObjective(PolicyGradient):
    """GRPO plus reverse KL to a teacher at the same tokens (KDRL, 2506.02208)."""

    kind: Literal["kdrl"] = "kdrl"
    form: Literal["joint", "advantage"] = Field(
        default="joint", description="joint: k2 loss beside the surrogate; advantage: beta x log-ratio added to it"
    )
    distill_coef: CoefSchedule
    mask: Literal["none", "response", "group"] = Field(
        default="none", description="response: only wrong rollouts; group: only groups without a right one"
    )
    estimator: Literal["k1", "k2", "k3"] = Field(default="k2", description="joint form; k1 is refused, see the error")

    @model_validator(mode="after")
    def _k1_is_no_loss(self) -> KdrlObjective:
        if self.estimator == "k1":
            raise ValueError(
                "k1 as a loss has zero expected gradient: the teacher cancels out. Write estimator: k2 (reverse-KL "
                "gradient), k3 (forward-KL gradient), or form: advantage (the log-ratio as a detached advantage)"
            )
        return self


class DistillObjective(Section):
    """On-policy distillation alone: reverse KL to the teacher on the policy's own samples (KD-RKL)."""

    kind: Literal["distill"] = "distill"
    estimator: Literal["k2", "k3"] = "k2"
    reduction: Literal["token", "sequence", "constant"] = "token"
    correction: ImportanceCorrection = ImportanceCorrection()


Objective = Annotated[GrpoObjective | KdrlObjective | DistillObjective, Field(discriminator="kind")]


class GroupAdvantage(Section):
    """Score minus the group's baseline, on the outcome; abstained rollouts leave the baseline."""

    kind: Literal["group"] = "group"
    baseline: Literal["mean", "leave_one_out"] = "mean"
    scale: Literal["std", "none"] = "std"


class ReinforceAdvantage(Section):
    """The score itself, without a baseline."""

    kind: Literal["reinforce"] = "reinforce"


AdvantageSpec = Annotated[GroupAdvantage | ReinforceAdvantage, Field(discriminator="kind")]
