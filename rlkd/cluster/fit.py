"""Whether a recipe's workers fit the machine, who shares a GPU, and which way weights go."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from rlkd.cluster.hardware import Hardware
from rlkd.errors import RecipeError
from rlkd.recipe.checks import Way, has_rl, needs_teacher, placed
from rlkd.recipe.models import TeacherSpec
from rlkd.recipe.offline_checks import samples
from rlkd.recipe.privileged_checks import separate_teachers
from rlkd.recipe.schema import Recipe, SftStage


@dataclass(frozen=True)
class GpuNeed:
    """GPUs that the recipe's workers hold at once, part by part. ``cluster.placement: auto`` counts as separate."""

    learners: int
    engines: int
    teachers: int  # on GPUs of their own
    lone: int  # engines for a teacher's evaluation or traces, while no learner runs
    colocated: bool

    @property
    def total(self) -> int:
        """With a GPU of its own for each teacher."""
        if self.colocated:
            return self.least + self.teachers
        return self.engines + max(self.learners + self.teachers, self.lone)

    @property
    def least(self) -> int:
        """Colocated, teachers may sit beside learners and engines; a lone engine sits where the learner does."""
        return max(self.learners, self.engines, self.lone) if self.colocated else self.total

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
        return "; ".join(parts)


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


def gpus_in_words(recipe: Recipe) -> str:
    """How many there must be, for each placement that the recipe leaves open."""
    needs = [(gpu_need(chosen), chosen) for chosen in placements(recipe)]
    said = " or ".join(
        f"{need.least} GPU(s) {'that workers take turns on' if need.colocated else 'with a worker on each'}"
        for need, chosen in needs
        if not any(_on_gpus(chosen, Hardware(cpus=1, gpus=need.least)))
    )
    parts = gpu_need(recipe).describe(recipe)
    return f"{said or 'no number of GPUs'} ({parts}); without any GPU everything runs on the CPU"


def settle(recipe: Recipe, hardware: Hardware) -> Recipe:
    """The recipe with ``cluster.placement: auto`` settled: GPUs are shared where not each worker can have one."""
    possible = placements(recipe)
    fitting = (chosen for chosen in possible if not hardware.on_gpu or not any(_on_gpus(chosen, hardware)))
    return next(fitting, possible[0])


def placements(recipe: Recipe) -> list[Recipe]:
    """The recipe with every placement that it leaves open, the better first."""
    if recipe.cluster.placement != "auto":
        return [recipe]
    ways: tuple[Way, ...] = ("separate", "colocated")
    return [chosen for way in ways if (chosen := placed(recipe, way)) is not None]


def teachers_beside(recipe: Recipe, hardware: Hardware) -> int:
    """Teachers on the GPU of a colocated learner and engine; 0 where they have GPUs of their own, or there are none.

    Args:
        recipe: a settled one.
    """
    need = gpu_need(recipe)
    if not (hardware.on_gpu and need.colocated and need.total > hardware.gpus):
        return 0
    return need.teachers // recipe.cluster.teacher_workers  # each worker of a teacher sits at another pair


def sharing(recipe: Recipe, hardware: Hardware) -> str:
    """In words, who shares GPUs in a settled, colocated recipe."""
    need = gpu_need(recipe)
    who = "learner, engine and teacher" if teachers_beside(recipe, hardware) else "learner and engine"
    apart = replace(need, colocated=False).total
    return f"{who} take turns on {need.least} GPU(s); with {apart} GPUs each would have one of its own"


def gpu_share(recipe: Recipe, *, teacher: bool = False, beside: int = 0) -> float:
    """``engine.gpu_memory_utilization`` with its default settled.

    Args:
        teacher: of a teacher's engine; default: of a rollout engine.
        beside: how many teachers sit on a rollout engine's GPU: together they take half of what it takes.
    """
    shared = recipe.cluster.placement == "colocated" and (beside > 0 or not teacher)
    share = recipe.engine.gpu_memory_utilization or (0.4 if shared else 0.85)  # the learner's state stays there too
    return share / (2 * beside) if teacher and beside else share


def weights_transport(recipe: Recipe, hardware: Hardware) -> str:
    """``cluster.weights`` of a settled recipe with ``auto`` settled too: object_store, nccl, ipc or gloo."""
    chosen = recipe.cluster.weights
    if chosen != "auto":
        return chosen
    if not hardware.on_gpu:
        return "object_store"
    if recipe.cluster.placement != "colocated":
        return "nccl"
    return "ipc" if hardware.nodes == 1 else "object_store"


def check_fit(recipe: Recipe, hardware: Hardware) -> None:
    """Raises: RecipeError when the recipe asks for more GPUs than there are. Without any GPU all runs on the CPU."""
    found = [list(_on_gpus(way, hardware) if hardware.on_gpu else _on_cpu(way)) for way in placements(recipe)]
    if all(found):
        faults = dict.fromkeys(fault for part in found for fault in part)
        raise RecipeError(f"{recipe.name} does not fit {hardware.describe()}:\n" + "\n".join(f"  {f}" for f in faults))


def _on_cpu(recipe: Recipe) -> Iterator[str]:
    weights = recipe.cluster.weights
    if recipe.engine.tensor_parallel > 1:
        yield f"engine.tensor_parallel: {recipe.engine.tensor_parallel}, but there is no GPU here"
    if weights in ("nccl", "ipc"):
        yield f"cluster.weights: '{weights}', but there is no GPU here; write auto, object_store or gloo"


def _remedies(recipe: Recipe, need: GpuNeed, hardware: Hardware) -> Iterator[str]:
    """What makes it fit, as far as it can."""
    if max(need.learners, need.engines, 1) > 1:
        yield "lower these"
    if (
        not need.colocated
        and replace(need, colocated=True).least <= hardware.gpus
        and placed(recipe, "colocated") is not None
    ):
        yield "write cluster.placement: colocated"
    if need.teachers and replace(need, teachers=0).least <= hardware.gpus:
        yield "let a server hold the teacher (teacher: {kind: server, ...})"
    yield "hide the GPUs (CUDA_VISIBLE_DEVICES=) to run on the CPU"


def _on_gpus(recipe: Recipe, hardware: Hardware) -> Iterator[str]:
    cluster, need = recipe.cluster, gpu_need(recipe)
    if need.least > hardware.gpus:
        yield (
            f"cluster: {'workers that take turns' if need.colocated else 'the workers'} need {need.least} GPUs and "
            f"there are {hardware.gpus} ({need.describe(recipe)}); " + " or ".join(_remedies(recipe, need, hardware))
        )
    publishes = has_rl(recipe) or (recipe.eval.every and recipe.data.eval is not None)
    if need.colocated and publishes and cluster.rollout_workers != (cluster.learner_workers or 1):
        yield (
            f"cluster.placement: 'colocated' pairs one rollout worker with one learner, cluster.rollout_workers: "
            f"{cluster.rollout_workers} with cluster.learner_workers: {cluster.learner_workers or 1}; make them equal"
        )
    pairs = max(cluster.learner_workers or 1, cluster.rollout_workers)
    if teachers_beside(recipe, hardware) and cluster.teacher_workers > pairs:
        yield (
            f"cluster.teacher_workers: {cluster.teacher_workers} on the GPUs of {pairs} pair(s) of learner and engine; "
            f"write at most {pairs}"
        )
    if cluster.weights == "gloo":
        yield "cluster.weights: 'gloo' is for machines without a GPU; write auto or nccl"
    if cluster.weights == "ipc" and hardware.nodes > 1:
        yield f"cluster.weights: 'ipc' on {hardware.nodes} nodes has never been tried; write auto or object_store"
