"""Which plan an objective follows."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rlkd.recipe.objectives import OpsdObjective, PiDistillObjective
from rlkd.trainer.plan import PiDistillPlan, SelfDistillPlan, StepPlan

if TYPE_CHECKING:
    from rlkd.trainer.rl import RlTrainer


def build_plan(trainer: RlTrainer) -> StepPlan:
    """The plan of the recipe's objective."""
    recipe, score_other = trainer.run.recipe, trainer.score_other
    if isinstance(recipe.objective, OpsdObjective):
        return SelfDistillPlan(recipe, score_other)
    if isinstance(recipe.objective, PiDistillObjective):
        return PiDistillPlan(recipe, score_other)
    return StepPlan(recipe, score_other)
