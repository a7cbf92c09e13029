"""Objectives and advantages as a recipe names them. Each is a preset over the functions of ``rlkd.objectives``."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from rlkd.recipe.base import Section
from rlkd.recipe.coefficients import (
    AnnealedCoef,
    Coef,
    CoefSchedule,
    ConstantCoef,
    ImportanceCorrection,
    LinearCoef,
    PolicyGradient,
    SwitchedCoef,
)
from rlkd.recipe.privileged import AlmObjective, OpdObjective, OpsdObjective, PiDistillObjective, RltfObjective


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


Objective = Annotated[
    GrpoObjective
    | KdrlObjective
    | DistillObjective
    | OpsdObjective
    | OpdObjective
    | PiDistillObjective
    | RltfObjective
    | AlmObjective,
    Field(discriminator="kind"),
]


class GroupAdvantage(Section):
    """Score minus the group's baseline, on the outcome; abstained rollouts leave the baseline."""

    kind: Literal["group"] = "group"
    baseline: Literal["mean", "leave_one_out"] = "mean"
    scale: Literal["std", "none"] = "std"


class ReinforceAdvantage(Section):
    """The score itself, without a baseline."""

    kind: Literal["reinforce"] = "reinforce"


AdvantageSpec = Annotated[GroupAdvantage | ReinforceAdvantage, Field(discriminator="kind")]

__all__ = [
    "AdvantageSpec",
    "AlmObjective",
    "AnnealedCoef",
    "Coef",
    "CoefSchedule",
    "ConstantCoef",
    "DistillObjective",
    "GroupAdvantage",
    "GrpoObjective",
    "ImportanceCorrection",
    "KdrlObjective",
    "LinearCoef",
    "Objective",
    "OpdObjective",
    "OpsdObjective",
    "PiDistillObjective",
    "PolicyGradient",
    "ReinforceAdvantage",
    "RltfObjective",
    "SwitchedCoef",
]
