"""What there is to run on, and how many threads an engine may use."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, replace

from rlkd.errors import RecipeError
from rlkd.launch import cpu_bfloat16
from rlkd.recipe.checks import has_rl, needs_teacher
from rlkd.recipe.models import TeacherSpec
from rlkd.recipe.offline_checks import samples
from rlkd.recipe.privileged_checks import separate_teachers
from rlkd.recipe.schema import Recipe, SftStage


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


@dataclass(frozen=True)
class GpuNeed:
    """GPUs that the recipe's workers hold at once, part by part."""

    learners: int
    engines: int
    teachers: int  # beside learners and engines
    lone: int  # engines for a teacher's evaluation or traces, while no learner runs
    colocated: bool

    @property
    def total(self) -> int:
        if self.colocated:
            return max(self.learners, self.engines) + self.teachers  # a lone engine sits where the learner does
        return self.engines + max(self.learners + self.teachers, self.lone)

    def describe(self, recipe: Recipe) -> str:
        """Each part by the keys that it comes from."""
        cluster, width = recipe.cluster, recipe.engine.tensor_parallel
        parts = [f"cluster.learner_workers: {self.learners}"] if self.learners else []
        if self.engines:
            parts.append(f"cluster.rollout_workers: {cluster.rollout_workers} x engine.tensor_parallel: {width}")
        if self.teachers:
            parts.append(f"cluster.teacher_workers: {cluster.teacher_workers}, {self.teachers} GPU(s) in all")
        if not self.colocated and self.lone > self.learners + self.teachers:
            parts.append(f"{self.lone} for engines that serve the teacher alone, while no learner runs")
        return "; ".join(parts) + (" (cluster.placement: colocated, counted once)" if self.colocated else "")


def gpu_need(recipe: Recipe) -> GpuNeed:
    """What ``Cluster`` will be asked for. Engines stay while later stages train."""
    cluster, width = recipe.cluster, recipe.engine.tensor_parallel
    engines = cluster.rollout_workers * width
    evaluated = recipe.data.eval is not None
    serves = has_rl(recipe) or evaluated or not recipe.stages or samples(recipe, "policy")
    alone = samples(recipe, "teacher") or (
        evaluated and any(isinstance(stage, SftStage) and stage.target == "teacher" for stage in recipe.stages)
    )
    teachers = 0
    if has_rl(recipe) and needs_teacher(recipe):
        local = [spec for spec in separate_teachers(recipe).values() if isinstance(spec, TeacherSpec)]
        teachers = cluster.teacher_workers * sum(width if spec.engine == "vllm" else 1 for spec in local)
    return GpuNeed(
        learners=(cluster.learner_workers or 1) if recipe.stages else 0,
        engines=engines if serves else 0,
        teachers=teachers,
        lone=engines if alone else 0,
        colocated=cluster.placement == "colocated",
    )


def gpu_share(recipe: Recipe, *, beside_learner: bool = True) -> float:
    """``engine.gpu_memory_utilization`` with its default settled.

    Args:
        beside_learner: of a rollout engine, whose GPU a colocated learner shares; no teacher's does.
    """
    shared = beside_learner and recipe.cluster.placement == "colocated"  # the learner's weights and moments stay there
    return recipe.engine.gpu_memory_utilization or (0.4 if shared else 0.85)


def weights_transport(recipe: Recipe, hardware: Hardware) -> str:
    """``cluster.weights`` with ``auto`` settled: object_store, nccl, ipc or gloo."""
    chosen = recipe.cluster.weights
    if chosen != "auto":
        return chosen
    if not hardware.on_gpu:
        return "object_store"
    if recipe.cluster.placement == "separate":
        return "nccl"
    return "ipc" if hardware.nodes == 1 else "object_store"


def this_machine() -> Hardware:
    """What is here, before Ray is asked."""
    import torch

    return Hardware(usable_cpus(), torch.cuda.device_count())


def slow_precisions(recipe: Recipe, hardware: Hardware) -> Iterator[str]:
    """What a recipe asks for and this machine can do, but at a fraction of float32's speed."""
    if hardware.on_gpu or cpu_bfloat16() != "none":
        return
    slow = "this CPU has no instructions for it and takes 10 to 50 times as long as with"
    if recipe.learner.precision == "bf16":
        yield f"learner.precision bf16: {slow} fp32; write auto, which takes what the machine does fast"
    if recipe.engine.dtype == "bfloat16":
        yield f"engine.dtype bfloat16: {slow} float32; write auto, which follows learner.precision"


def check_fit(recipe: Recipe, hardware: Hardware) -> None:
    """Raises: RecipeError when the recipe asks for more GPUs than there are. Without any GPU all runs on the CPU."""
    faults = list(_on_gpus(recipe, hardware) if hardware.on_gpu else _on_cpu(recipe))
    if faults:
        raise RecipeError(f"{recipe.name} does not fit {hardware.describe()}:\n" + "\n".join(f"  {f}" for f in faults))


def _on_cpu(recipe: Recipe) -> Iterator[str]:
    weights = recipe.cluster.weights
    if recipe.engine.tensor_parallel > 1:
        yield f"engine.tensor_parallel: {recipe.engine.tensor_parallel}, but there is no GPU here"
    if weights in ("nccl", "ipc"):
        yield f"cluster.weights: '{weights}', but there is no GPU here; write auto, object_store or gloo"


def _remedies(need: GpuNeed, hardware: Hardware) -> Iterator[str]:
    """What makes it fit, as far as it can."""
    if max(need.learners, need.engines, 1) > 1:
        yield "lower these"
    if not need.colocated and replace(need, colocated=True).total <= hardware.gpus:
        yield "write cluster.placement: colocated"
    if need.teachers:
        yield "let a server hold the teacher (teacher: {kind: server, ...})"
    yield "hide the GPUs (CUDA_VISIBLE_DEVICES=) to run on the CPU"


def _on_gpus(recipe: Recipe, hardware: Hardware) -> Iterator[str]:
    cluster, need = recipe.cluster, gpu_need(recipe)
    if need.total > hardware.gpus:
        yield (
            f"cluster: the workers need {need.total} GPUs and there are {hardware.gpus} ({need.describe(recipe)}); "
            + " or ".join(_remedies(need, hardware))
        )
    publishes = has_rl(recipe) or (recipe.eval.every and recipe.data.eval is not None)
    if need.colocated and publishes and cluster.rollout_workers != (cluster.learner_workers or 1):
        yield (
            f"cluster.placement: 'colocated' pairs one rollout worker with one learner, cluster.rollout_workers: "
            f"{cluster.rollout_workers} with cluster.learner_workers: {cluster.learner_workers or 1}; make them equal"
        )
    if cluster.weights == "gloo":
        yield "cluster.weights: 'gloo' is for machines without a GPU; write auto or nccl"
    if cluster.weights == "ipc" and hardware.nodes > 1:
        yield f"cluster.weights: 'ipc' on {hardware.nodes} nodes has never been tried; write auto or object_store"
