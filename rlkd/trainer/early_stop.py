"""When an RL stage ends before its last step, and which policy it keeps."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlkd.errors import RecipeError
from rlkd.evaluate import ProblemScore
from rlkd.recipe.schema import EarlyStopSpec

_QUARTERS = 4


@dataclass
class EarlyStop:
    """Watches pass@1 of a fixed set of held-out problems.

    The set is chosen once, when the stage starts: lengths change in training, and a bucket whose problems come and go
    would rise and fall by that alone.
    """

    spec: EarlyStopSpec
    folder: Path  # best policies, beside the stage's checkpoints
    problems: tuple[str, ...] = ()
    best: float = 0.0
    best_step: int = 0
    waited: int = 0

    def begin(self, scores: Mapping[str, ProblemScore]) -> None:
        """Choose the problems by the length of their completions, and take the starting policy as the best so far."""
        ordered = sorted(scores, key=lambda name: (scores[name].tokens, name))
        quarter = self.spec.length_quarter
        if quarter is not None:
            start, end = (len(ordered) * at // _QUARTERS for at in (quarter - 1, quarter))
            ordered = ordered[start:end]
        if not ordered:
            raise RecipeError(
                f"eval.early_stop.length_quarter: {quarter} holds none of the {len(scores)} problems that were judged"
            )
        self.problems, self.best = tuple(ordered), _mean(scores, ordered)

    def note(self, step: int, scores: Mapping[str, ProblemScore]) -> float:
        """Take in an evaluation. Returns: pass@1 of the watched problems."""
        found = _mean(scores, self.problems)
        if found > self.best:
            self.best, self.best_step, self.waited = found, step, 0
        else:
            self.waited += 1
        return found

    @property
    def stops(self) -> bool:
        return self.waited >= self.spec.patience

    def policy_folder(self, step: int) -> Path:
        """Where the policy of a step is kept."""
        return self.folder / f"best-{step:06d}"

    def make_room(self, step: int) -> Path:
        """``policy_folder``, without what a killed run left there."""
        place = self.policy_folder(step)
        shutil.rmtree(place, ignore_errors=True)
        return place

    def prune(self) -> None:
        """Remove policies that are no longer the best; call it once a checkpoint says so."""
        for old in self.folder.glob("best-*"):
            if old != self.policy_folder(self.best_step):
                shutil.rmtree(old)

    def state(self) -> dict[str, Any]:
        """For the checkpoint's manifest."""
        return {name: getattr(self, name) for name in ("best", "best_step", "waited")} | {
            "problems": list(self.problems)
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Undo ``state``."""
        self.best, self.best_step, self.waited = state["best"], state["best_step"], state["waited"]
        self.problems = tuple(state["problems"])


def _mean(scores: Mapping[str, ProblemScore], problems: tuple[str, ...] | list[str]) -> float:
    """Of the problems that were judged this time."""
    found = [scores[name].score for name in problems if name in scores]
    return sum(found) / max(1, len(found))
