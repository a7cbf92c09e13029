"""What there is to run on, and how many threads an engine may use."""

from __future__ import annotations

import os
from dataclasses import dataclass

from rlkd.errors import RecipeError
from rlkd.recipe.checks import has_rl, needs_teacher
from rlkd.recipe.privileged_checks import separate_teachers
from rlkd.recipe.schema import Recipe, TeacherSpec


@dataclass(frozen=True)
class Hardware:
    """The cluster's totals."""

    cpus: int
    gpus: int
    nodes: int = 1

    @property
    def on_gpu(self) -> bool:
        return self.gpus > 0

    def describe(self) -> str:
        return f"{self.nodes} node(s), {self.cpus} CPU cores, {self.gpus} GPUs"


def usable_cpus() -> int:
    """Cores that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def gpus_needed(recipe: Recipe) -> int:
    """GPUs that the recipe's workers hold at once."""
    cluster = recipe.cluster
    learners = cluster.learner_workers or 1
    if not has_rl(recipe):
        return learners
    engines = cluster.rollout_workers * recipe.engine.tensor_parallel
    teachers = 0
    if needs_teacher(recipe):
        local = [spec for spec in separate_teachers(recipe).values() if isinstance(spec, TeacherSpec)]
        widths = [recipe.engine.tensor_parallel if spec.engine == "vllm" else 1 for spec in local]
        teachers = cluster.teacher_workers * sum(widths)
    return (max(learners, engines) if cluster.placement == "colocated" else learners + engines) + teachers


def check_fit(recipe: Recipe, hardware: Hardware) -> None:
    """Raises: RecipeError when the recipe asks for more GPUs than there are. Without any GPU all runs on the CPU."""
    if not hardware.on_gpu:
        if recipe.engine.tensor_parallel > 1:
            raise RecipeError(f"engine.tensor_parallel: {recipe.engine.tensor_parallel}, but there is no GPU here")
        return
    needed = gpus_needed(recipe)
    if needed > hardware.gpus:
        raise RecipeError(
            f"cluster: the workers need {needed} GPUs and the cluster has {hardware.gpus}; lower cluster.*_workers or "
            "engine.tensor_parallel, or write cluster.placement: colocated"
        )
    colocated = recipe.cluster.placement == "colocated"
    if colocated and recipe.cluster.rollout_workers != (recipe.cluster.learner_workers or 1):
        raise RecipeError("cluster.placement: 'colocated' pairs one rollout worker with one learner; make them equal")
