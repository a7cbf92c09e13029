"""Settings that are each fine and together make no sense. All are reported at once, before anything starts."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Literal

from rlkd.errors import RecipeError
from rlkd.recipe.data import ReasoningGymData
from rlkd.recipe.models import RoutedTeachers, ScratchModel, TeacherSpec
from rlkd.recipe.objective_checks import CHECKS as OBJECTIVE_CHECKS
from rlkd.recipe.offline_checks import CHECKS as OFFLINE_CHECKS
from rlkd.recipe.privileged_checks import CHECKS as PRIVILEGED_CHECKS
from rlkd.recipe.privileged_checks import separate_teachers
from rlkd.recipe.schema import EvalSpec, Recipe, RlStage, SftStage

Check = Callable[[Recipe], Iterator[str]]
Way = Literal["separate", "colocated"]


def check_recipe(recipe: Recipe, *, where: str) -> None:
    """Raises: RecipeError with one line per contradiction."""
    faults = [fault for check in _CHECKS for fault in check(recipe)]
    if faults:
        lines = "\n".join(f"  {fault}" for fault in faults)
        raise RecipeError(f"{where} contradicts itself:\n{lines}")


def needs_teacher(recipe: Recipe) -> bool:
    """Whether the recipe's objective reads scores of a separate teacher."""
    return recipe.objective.kind in ("kdrl", "distill", "opd", "alm")


def placed(recipe: Recipe, placement: Way) -> Recipe | None:
    """With ``cluster.placement`` as given; None where another setting speaks against it."""
    cluster = recipe.cluster.model_copy(update={"placement": placement})
    chosen = recipe.model_copy(update={"cluster": cluster})
    return None if any(_sharing(chosen)) else chosen


def has_rl(recipe: Recipe) -> bool:
    """Whether any stage samples rollouts to train on."""
    return any(isinstance(stage, RlStage) for stage in recipe.stages)


def _teacher(recipe: Recipe) -> Iterator[str]:
    teachers = separate_teachers(recipe)
    if has_rl(recipe) and needs_teacher(recipe) and not teachers:
        yield f"objective.kind: '{recipe.objective.kind}' needs a teacher; write a `teacher:` section with its model"
    for index, stage in enumerate(recipe.stages):
        if isinstance(stage, SftStage) and stage.target == "teacher" and not isinstance(recipe.teacher, TeacherSpec):
            yield f"stages.{index}.target: 'teacher', but the recipe has no `teacher:` section with a model"
    served = any(isinstance(spec, TeacherSpec) and spec.engine == "vllm" for spec in teachers.values())
    if served and recipe.rollout.temperature != 1.0 and needs_teacher(recipe):
        yield (
            f"rollout.temperature: {recipe.rollout.temperature} with teacher.engine 'vllm', whose prompt log-probs "
            "are always at temperature 1; write temperature: 1.0 or teacher.engine: transformers"
        )


def _vocabulary(recipe: Recipe) -> Iterator[str]:
    policy = recipe.policy
    if not needs_teacher(recipe) or recipe.objective.kind == "alm" or not isinstance(policy, ScratchModel):
        return
    for spec in separate_teachers(recipe).values():
        model = spec.model if isinstance(spec, TeacherSpec) else None
        if isinstance(model, ScratchModel) and policy.tokenizer != model.tokenizer:
            yield (
                "teacher.model.tokenizer: differs from policy.tokenizer; token-level distillation needs the same one "
                "(objective.kind: alm does not)"
            )


def _reads_scores(recipe: Recipe) -> bool:
    """Whether the verifier's scores enter the gradient."""
    objective = recipe.objective
    return objective.kind not in ("distill", "alm") and getattr(objective, "reward_coef", 1.0) > 0


def _group(recipe: Recipe) -> Iterator[str]:
    if not has_rl(recipe):
        return
    if recipe.rollout.group_size == 1 and recipe.advantage.kind == "group" and _reads_scores(recipe):
        yield (
            "rollout.group_size: 1 with advantage.kind 'group' gives every rollout advantage 0; "
            "write group_size: 2 or more, or advantage: {kind: reinforce}"
        )
    if recipe.learner.updates_per_step > recipe.rollout.prompts_per_step:
        yield (
            f"learner.updates_per_step: {recipe.learner.updates_per_step} exceeds rollout.prompts_per_step "
            f"{recipe.rollout.prompts_per_step}; an update needs at least one whole group"
        )


def _sampling(recipe: Recipe) -> Iterator[str]:
    rollout = recipe.rollout
    if rollout.top_p == 1.0 and rollout.top_k == 0:
        return
    given = f"rollout.top_p/top_k: {rollout.top_p}/{rollout.top_k}"
    if has_rl(recipe):
        yield (
            f"{given}; truncated sampling makes the engine's log-probs those of another distribution than the "
            "learner's; write top_p: 1.0 and top_k: 0 (evaluation has its own eval.top_p)"
        )
    else:
        yield f"{given} has no effect without an RL stage; leave it out (evaluation has its own eval.top_p)"


def _lengths(recipe: Recipe) -> Iterator[str]:
    models = {"policy": recipe.policy}
    if recipe.objective.kind != "alm":  # another tokenizer counts other tokens
        named = {name: spec.model for name, spec in separate_teachers(recipe).items() if isinstance(spec, TeacherSpec)}
        models |= {"teacher.model" if name == "teacher" else name: model for name, model in named.items()}
    rollout = recipe.rollout
    total = rollout.max_prompt_tokens + rollout.max_new_tokens
    for name, model in models.items():
        if isinstance(model, ScratchModel) and has_rl(recipe) and total > model.context_length:
            yield (
                f"rollout: max_prompt_tokens {rollout.max_prompt_tokens} + max_new_tokens {rollout.max_new_tokens} "
                f"= {total} exceeds {name}.context_length {model.context_length}"
            )
        for index, stage in enumerate(recipe.stages):
            aimed = isinstance(stage, SftStage) and name.startswith(stage.target)
            if aimed and isinstance(model, ScratchModel) and stage.max_length > model.context_length:  # type: ignore[union-attr]
                yield f"stages.{index}.max_length: exceeds {name}.context_length {model.context_length}"


def _cluster(recipe: Recipe) -> Iterator[str]:
    cluster = recipe.cluster
    if cluster.schedule == "sync" and cluster.max_staleness:
        yield f"cluster.max_staleness: {cluster.max_staleness} has no effect with schedule 'sync'; write async"
    yield from _sharing(recipe)
    if recipe.learner.offload_optimizer and recipe.learner.zero_stage == 0:
        yield "learner.offload_optimizer: needs learner.zero_stage 1, 2 or 3; given 0"


def _sharing(recipe: Recipe) -> Iterator[str]:
    """What cannot take turns on a GPU, where the recipe says that it shall."""
    cluster, width = recipe.cluster, recipe.engine.tensor_parallel
    if cluster.weights == "ipc" and cluster.placement == "separate":
        yield (
            "cluster.weights: 'ipc' shares the memory of one GPU, with cluster.placement 'separate'; write nccl, or "
            "colocated"
        )
    if cluster.placement == "colocated":
        asked = "cluster.placement: 'colocated'"
    elif cluster.placement == "auto" and cluster.weights == "ipc":
        asked = "cluster.weights: 'ipc'"
    else:
        return
    if cluster.schedule == "async":
        yield f"{asked} shares the device in turns, which schedule 'async' cannot; choose one"
    if cluster.weights == "nccl":
        yield f"cluster.weights: 'nccl' with {asked}: NCCL refuses two ranks on a GPU; write ipc or object_store"
    if width > 1:
        yield (
            f"engine.tensor_parallel: {width} with {asked}, which pairs one engine with one learner on one GPU; write "
            "tensor_parallel: 1 or cluster.placement: separate"
        )


def _stages(recipe: Recipe) -> Iterator[str]:
    names = [stage.name for stage in recipe.stages]
    for name in sorted({name for name in names if names.count(name) > 1}):
        yield f"stages: the name '{name}' is used {names.count(name)} times; give each stage a `name:` of its own"
    if isinstance(recipe.teacher, RoutedTeachers):
        default = recipe.teacher.default
        if default is not None and default not in recipe.teacher.teachers:
            yield f"teacher.default: '{default}' is none of {sorted(recipe.teacher.teachers)}"
        if "policy" in recipe.teacher.teachers:
            yield "teacher.teachers: 'policy' is the trained model's own name; give the teacher another"


def _evaluation(recipe: Recipe) -> Iterator[str]:
    if recipe.eval.samples > 1 and recipe.eval.temperature == 0:
        yield f"eval.samples: {recipe.eval.samples} greedy samples are all the same; write a temperature above 0"
    if recipe.eval.top_p < 1 and recipe.eval.temperature == 0:
        yield f"eval.top_p: {recipe.eval.top_p} has no effect on greedy samples; write a temperature above 0"
    unread = [f"eval.{name}" for name, given in recipe.eval if given != EvalSpec.model_fields[name].default]
    if unread and recipe.data.eval is None:
        yield f"{', '.join(unread)}: no effect, since there is no data.eval; write data.eval, or eval: {{}}"
    if recipe.eval.every and all(isinstance(stage, SftStage) for stage in recipe.stages):
        yield f"eval.every: {recipe.eval.every} has no effect without a stage of kind 'rl' or 'offline'; leave it out"
    if recipe.eval.early_stop is not None and not recipe.eval.every:
        yield "eval.early_stop: watches the evaluations within a stage, but there are none; write eval.every"
    if recipe.eval.early_stop is not None and not any(isinstance(stage, RlStage) for stage in recipe.stages):
        yield "eval.early_stop: no stage of kind 'rl' reads it; leave the section out"


def _unread(recipe: Recipe) -> Iterator[str]:
    kinds = {stage.kind for stage in recipe.stages}
    if "offline" not in kinds or "rl" in kinds:  # an RL recipe cut down to its SFT keeps its other sections
        return
    for name in ("objective", "advantage", "optim"):
        if getattr(recipe, name) != Recipe.model_fields[name].default:
            own = [f"stages.{stage.name}.{name}" for stage in recipe.stages if hasattr(stage, name)]
            yield f"{name}: is read by stages of kind 'rl' alone; " + (
                f"write {' or '.join(own)}" if own else "leave it out"
            )


def _schedules(recipe: Recipe) -> Iterator[str]:
    longest = max(
        (s.steps * recipe.learner.updates_per_step for s in recipe.stages if isinstance(s, RlStage)), default=0
    )
    if longest and recipe.optim.warmup_steps > longest:
        yield f"optim.warmup_steps: {recipe.optim.warmup_steps} exceeds the stage's {longest} updates"
    for index, stage in enumerate(recipe.stages):
        ranks = recipe.cluster.learner_workers or 1  # unknown before the launcher has spoken
        if isinstance(stage, SftStage) and stage.batch_size % ranks:
            yield f"stages.{index}.batch_size: {stage.batch_size} rows do not divide among {ranks} learner_workers"
        if isinstance(stage, SftStage) and stage.optim.warmup_steps > stage.steps:
            yield f"stages.{index}.optim.warmup_steps: {stage.optim.warmup_steps} exceeds its {stage.steps} steps"


def _placeholders(recipe: Recipe) -> Iterator[str]:
    if "{question}" not in recipe.data.prompt:
        yield f"data.prompt: {recipe.data.prompt!r} does not contain {{question}}"


_NUMBERS = ("math", "numeric", "reasoning_gym")  # verifiers that don't know letters


def _options(recipe: Recipe) -> Iterator[str]:
    own = {f"stages.{stage.name}.data": stage.data for stage in recipe.stages if isinstance(stage, SftStage)}
    sources = {"data.train": recipe.data.train, "data.eval": recipe.data.eval, **own}
    for where, listed in sources.items():
        if not any(isinstance(source, ReasoningGymData) and source.options for source in listed or ()):
            continue
        if "{options}" not in recipe.data.prompt:
            yield f'{where}.options: data.prompt does not list them; write data.prompt: "{{question}}\\n{{options}}"'
        if recipe.verifier.kind in _NUMBERS:
            yield (
                f"{where}.options: the answer is a letter, which verifier '{recipe.verifier.kind}' does not judge; "
                "write verifier: {kind: multiple_choice}"
            )


_CHECKS: tuple[Check, ...] = (
    _teacher,
    _vocabulary,
    _group,
    _sampling,
    _lengths,
    _cluster,
    _stages,
    _evaluation,
    _unread,
    _schedules,
    _placeholders,
    _options,
    *OBJECTIVE_CHECKS,
    *PRIVILEGED_CHECKS,
    *OFFLINE_CHECKS,
)
