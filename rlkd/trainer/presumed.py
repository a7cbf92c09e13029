"""What a method presumes of its run, and a note, once, with the figures that show it, where a run doesn't give it."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from statistics import fmean

from rlkd.recipe import Recipe
from rlkd.recipe.coefficients import always_zero
from rlkd.recipe.objectives import GroupAdvantage, RltfObjective

WINDOW = 5  # steps that a figure is averaged over
ALL_ALIKE = 0.9  # share of groups without variance from which on a group baseline has next to nothing to say

Mean = Callable[[str], float | None]  # a figure's mean over the window; None before it is full, and without the figure


@dataclass
class Presumed:
    """Watches an RL stage's figures, step by step."""

    recipe: Recipe
    note: Callable[[str], None]
    recent: deque[Mapping[str, object]] = field(default_factory=lambda: deque(maxlen=WINDOW))
    told: set[str] = field(default_factory=set)

    def update(self, step: int, figures: Mapping[str, object]) -> None:
        """Take one step's figures."""
        self.recent.append(figures)
        for check in _CHECKS:
            if check.__name__ not in self.told and (said := check(self.recipe, self._mean)):
                self.told.add(check.__name__)
                self.note(f"step {step}: {said}")

    def _mean(self, name: str) -> float | None:
        found = [value for row in self.recent if isinstance(value := row.get(name), float)]
        return fmean(found) if len(found) == WINDOW else None


def _cap_leaves_the_teacher_in_place(recipe: Recipe, mean: Mean) -> str | None:
    clip, left = getattr(recipe.objective, "clip", None), mean("divergence")
    if clip is None or left is None or left >= 0:
        return None
    return (
        f"objective.clip {clip} caps entries with {mean('clipped_share') or 0.0:.0%} of the teacher's mass and leaves "
        f"a divergence of {left:.1e}, below zero: the policy is moved away from these entries. Should accuracy fall, "
        "write clip: null or a larger one (rlkd explain opsd)"
    )


def _revised_answers_are_better(recipe: Recipe, mean: Mean) -> str | None:
    objective, gain = recipe.objective, mean("revision_advantage")
    if not isinstance(objective, RltfObjective) or always_zero(objective.self_distill_coef):
        return None
    if gain is None or gain >= 0:
        return None
    return (
        f"revised answers score {-gain:.2f} less than first ones to the same questions, so that self-distillation "
        "mostly pushes away. Does the policy know how to read feedback? One from scratch learns it with "
        "contexts: [bare, second_turn] in its SFT stage"
    )


def _groups_differ(recipe: Recipe, mean: Mean) -> str | None:
    alike, right = mean("zero_variance_groups"), mean("pass_rate")
    by_group = isinstance(recipe.advantage, GroupAdvantage) and recipe.objective.kind in ("grpo", "pi_distill", "rltf")
    if not by_group or recipe.rollout.group_size < 2 or alike is None or alike < ALL_ALIKE:
        return None
    which = "harder" if right is not None and right > 0.5 else "easier"
    return (
        f"in {alike:.0%} of the groups all rollouts score the same ({right or 0.0:.0%} are right), which gives a group "
        f"baseline nothing to learn from; try {which} problems or a larger rollout.group_size"
    )


_CHECKS = (_cap_leaves_the_teacher_in_place, _revised_answers_are_better, _groups_differ)
