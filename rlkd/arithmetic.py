"""What a recipe amounts to, in numbers and words, before anything starts: ``--dry-run``."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING

from rlkd.cluster.fit import gpu_need, gpu_share, gpus_in_words, placements, weights_transport
from rlkd.cluster.hardware import Hardware
from rlkd.launch import Launch
from rlkd.models.shape import Shape, model_shape
from rlkd.recipe import Recipe
from rlkd.recipe.checks import has_rl, needs_teacher
from rlkd.recipe.coefficients import always_zero
from rlkd.recipe.models import ModelSpec, TeacherSpec
from rlkd.recipe.objectives import PiDistillObjective, RltfObjective
from rlkd.recipe.offline_checks import offline_stages, samples
from rlkd.recipe.privileged import SelfTeacher
from rlkd.recipe.privileged_checks import second_prompt_budget, separate_teachers, teacher_prompt_budget
from rlkd.recipe.schema import OfflineStage, SftStage, Stage

if TYPE_CHECKING:
    from rlkd.records import Term, TrainRow

GIB = 2**30
_BYTES = {"fp32": 4, "bf16": 2, "float32": 4, "bfloat16": 2}


def describe(recipe: Recipe) -> str:
    """The job in words: stages, batch arithmetic, memory. What the recipe leaves open is settled for this machine."""
    recipe = Launch().resolve(recipe)
    policy = model_shape(recipe.policy)
    lines = [f"{recipe.name}: {recipe.description}".rstrip(": "), "", "stages"]
    lines += [f"  {index}. {_stage(recipe, stage)}" for index, stage in enumerate(recipe.stages)]
    lines += ["", "models", f"  policy   {_model(recipe.policy, policy)}"]
    for name, teacher in _local_teachers(recipe).items():
        lines.append(f"  {name:<9}{_model(teacher.model, model_shape(teacher.model))}")
    if has_rl(recipe):
        lines += ["", "one RL step", *(f"  {line}" for line in _rl_step(recipe))]
    lines += ["", "workers", *(f"  {line}" for line in _workers(recipe))]
    lines += ["", "memory, estimated", *(f"  {line}" for line in _memory(recipe, policy))]
    return "\n".join(lines)


# ---------------------------------------------------------------- stages and batches


def _stage(recipe: Recipe, stage: Stage) -> str:
    if isinstance(stage, SftStage):
        tokens = stage.steps * stage.batch_size * stage.max_length
        return (
            f"{stage.name}: fine-tunes the {stage.target} for {stage.steps} updates of {stage.batch_size} solutions "
            f"(at most {stage.max_length} tokens each, {tokens:,} in all), lr {stage.optim.lr:g} {stage.optim.schedule}"
        )
    if isinstance(stage, OfflineStage):
        length = f"{stage.steps} updates" if stage.steps else f"{stage.epochs:g} epoch(s)"
        tokens = 2 * stage.batch_size * (stage.max_prompt_tokens + stage.max_response_tokens)
        return (
            f"{stage.name}: objective {stage.objective.kind} on pairs ({stage.pairs.kind}) for {length} of "
            f"{stage.batch_size} pairs (at most {tokens:,} tokens each), lr {stage.optim.lr:g} {stage.optim.schedule}"
        )
    updates = stage.steps * recipe.learner.updates_per_step
    spec = recipe.objective
    what = f"objective {spec.kind}, advantage {recipe.advantage.kind}"
    return (
        f"{stage.name}: {stage.steps} steps, {updates} updates of the policy, {what}, "
        f"lr {recipe.optim.lr:g} {recipe.optim.schedule}"
    )


def _rl_step(recipe: Recipe) -> list[str]:
    rollout, learner = recipe.rollout, recipe.learner
    ranks = recipe.cluster.learner_workers or 1
    count = rollout.prompts_per_step * rollout.group_size
    turns = 2 if isinstance(recipe.objective, RltfObjective) else 1
    generated = turns * count * rollout.max_new_tokens
    scored = count * (rollout.max_prompt_tokens + rollout.max_new_tokens)
    packed, most = packed_tokens(recipe)
    per_update = count / learner.updates_per_step
    lines = [
        f"{rollout.prompts_per_step} prompts x {rollout.group_size} completions = {count} rollouts",
        f"at most {generated:,} generated tokens ({rollout.max_new_tokens} each)",
        f"{learner.updates_per_step} update(s) of {per_update:g} rollouts, dealt to {ranks} rank(s) in whole groups",
        f"at most {packed:,} tokens through the learner where a group shares its prompt, {packed // ranks:,} a rank",
        f"at most {most} micro-batch(es) of {learner.tokens_per_micro_batch:,} tokens per rank and update",
    ]
    if needs_teacher(recipe):
        lines.append(f"at most {scored:,} tokens through the teacher")
    return lines


def _local_teachers(recipe: Recipe) -> dict[str, TeacherSpec]:
    """Teachers that run beside the policy and that the objective reads."""
    if not (needs_teacher(recipe) or samples(recipe, "teacher")):
        return {}
    return {name: spec for name, spec in separate_teachers(recipe).items() if isinstance(spec, TeacherSpec)}


def packed_tokens(recipe: Recipe) -> tuple[int, int]:
    """(tokens of a step, micro-batches of a rank's update) if every prompt and completion had its full length.

    Counted by the planner that the learner uses, on rows of the largest size.
    """
    from rlkd.learner.packing import group_cost, split_groups
    from rlkd.trainer.assemble import plan_updates

    rollout = recipe.rollout
    rows = [
        replace(row, group=group, prompt_ids=(kind, 0 if shared else member, *row.prompt_ids)[: len(row.prompt_ids)])
        for kind, row, shared in _rows_of_a_rollout(recipe)
        for group in range(rollout.prompts_per_step)
        for member in range(rollout.group_size)
    ]
    shares = plan_updates(recipe, rows, ranks=recipe.cluster.learner_workers or 1)
    return sum(map(group_cost, split_groups(rows))), max(u.micro_batches for share in shares for u in share)


def _rows_of_a_rollout(recipe: Recipe) -> list[tuple[int, TrainRow, bool]]:
    """Rows that the learner may get of a rollout, at full length: its prompt's kind, and whether a group shares it."""
    from rlkd.records import TrainRow

    def row(prompt: int, completion: int, term: Term = "sampled") -> TrainRow:
        return TrainRow(0, (0,) * prompt, (0,) * completion, rollout_logprobs=(), advantage=0.0, term=term)

    objective, bare, new = recipe.objective, recipe.rollout.max_prompt_tokens, recipe.rollout.max_new_tokens
    if isinstance(objective, PiDistillObjective):
        return [(0, row(bare, new, "bare"), True), (1, row(teacher_prompt_budget(recipe), new), True)]
    rows = [(0, row(bare, new), True)]
    if isinstance(objective, RltfObjective) and recipe.feedback is not None:
        second = second_prompt_budget(recipe)
        rows.append((1, row(second, new), False))
        if not always_zero(objective.self_distill_coef):
            rows.append((0, row(bare, new, "revision"), True))
        if not always_zero(objective.feedback_coef):
            rows.append((2, row(second, recipe.feedback.max_tokens + 1, "critique"), False))
    return rows


# ---------------------------------------------------------------- workers and memory


def _workers(recipe: Recipe) -> list[str]:
    cluster, learner = recipe.cluster, recipe.learner
    ranks = cluster.learner_workers or 1
    lines = [f"{ranks} learner rank(s): {learner.precision or 'fp32'}, ZeRO stage {learner.zero_stage or 0}"]
    if has_rl(recipe) or offline_stages(recipe):
        lines.append(f"{cluster.rollout_workers} rollout engine(s), {recipe.engine.tensor_parallel} device(s) each")
    for name, teacher in _local_teachers(recipe).items():
        lines.append(f"{cluster.teacher_workers} worker(s) for {name} on {teacher.engine}")
    if recipe.teacher is not None and recipe.teacher.kind in ("self", "server"):
        lines.append(
            {"self": "the policy is its own teacher", "server": "the teacher is a server"}[recipe.teacher.kind]
        )
    lines.append(f"{recipe.verifier.workers} verifier process(es): {recipe.verifier.kind}")
    lines.append(
        f"{cluster.placement}, {cluster.schedule}"
        + (f", rollouts at most {cluster.max_staleness} update(s) old" if cluster.schedule == "async" else "")
    )
    lines.append(gpus_in_words(recipe))
    lines.append(f"weights to the rollout engines: {_transports(recipe)}")
    return lines


def _transports(recipe: Recipe) -> str:
    """By kind of machine, where the recipe leaves it open."""
    if recipe.cluster.weights != "auto":
        return recipe.cluster.weights
    many, none = (Hardware(cpus=1, gpus=gpus) for gpus in (gpu_need(recipe).total, 0))
    ways = [
        f"{weights_transport(way, many)} on {'shared ' if way.cluster.placement == 'colocated' else ''}GPUs"
        for way in placements(recipe)
    ]
    return ", ".join([*ways, f"{weights_transport(recipe, none)} on the CPU"])


def _memory(recipe: Recipe, policy: Shape | None) -> list[str]:
    if policy is None:
        return ["unknown before the policy's config.json is here"]
    learner, engine = recipe.learner, recipe.engine
    states = learner_state_bytes(recipe, policy)
    activations = activation_bytes(recipe, policy)
    precision = engine.dtype if engine.dtype != "auto" else learner.precision or "fp32"
    weights = policy.parameters * _BYTES[precision] / engine.tensor_parallel
    per_token = 2 * policy.layers * policy.kv_width * _BYTES[precision] / engine.tensor_parallel
    lines = [
        f"learner rank: {_gib(states + activations)} = {_gib(states)} weights, gradients and Adam "
        f"+ {_gib(activations)} activations of a full micro-batch",
        f"rollout engine: {_gib(weights)} weights + key-value cache ({per_token / 1024:.1f} KiB a token; "
        f"{engine.kv_cache_gib} GiB on a CPU, on a GPU what {gpu_share(recipe):.0%} of it leaves)",
    ]
    lines += [f"{name}: {_gib(size * policy.parameters)} on each learner rank" for name, size in _copies(recipe)]
    for name, spec in _local_teachers(recipe).items():
        teacher = model_shape(spec.model)
        if teacher is not None:
            cache = " + its own key-value cache" if spec.engine == "vllm" else ""
            lines.append(f"{name}: {_gib(teacher.parameters * _BYTES[precision])} weights{cache}")
    lines.append(
        "how: fp32 keeps 4 + 4 + 8 bytes a parameter (weight, gradient, Adam); bf16 2 + 4 + 12 (gradient, master and "
        "Adam in fp32); ZeRO 1 divides the last by the ranks, 2 also the gradient, 3 also the weight. Activations: "
        "layers x (8 hidden + 4 intermediate) numbers a token, with gradient checkpointing one hidden state a layer. "
        "Libraries add 1 to 2 GiB a process"
    )
    return lines


def _copies(recipe: Recipe) -> Iterator[tuple[str, int]]:
    """Whole models that a learner keeps beside the one it trains, and their bytes a parameter."""
    from rlkd.learner.teaching import needs_copy

    weight = _BYTES[recipe.learner.precision or "fp32"]
    if getattr(recipe.objective, "kl_coef", 0.0) and recipe.learner.lora is None:
        yield "reference policy", weight
    if needs_copy(recipe):
        averaged = isinstance(recipe.teacher, SelfTeacher) and recipe.teacher.weights == "ema"
        yield "self-teacher", weight + (4 if averaged else 0)  # an average is kept in float32


def learner_state_bytes(recipe: Recipe, policy: Shape) -> float:
    """Weights, gradients and optimizer state of one rank, in bytes on its device."""
    learner = recipe.learner
    ranks, stage = recipe.cluster.learner_workers or 1, learner.zero_stage or 0
    weight, gradient, optimizer = (2, 4, 12) if learner.precision == "bf16" else (4, 4, 8)
    if learner.lora is not None:  # the frozen base has neither gradient nor optimizer state; adapters are small
        gradient = optimizer = 0
    if learner.offload_optimizer:
        optimizer = 0
    return policy.parameters * (
        weight / (ranks if stage >= 3 else 1)
        + gradient / (ranks if stage >= 2 else 1)
        + optimizer / (ranks if stage >= 1 else 1)
    )


def activation_bytes(recipe: Recipe, policy: Shape) -> float:
    """Numbers kept for the backward pass of a full micro-batch, in bytes."""
    per_layer = policy.hidden if recipe.learner.gradient_checkpointing else 8 * policy.hidden + 4 * policy.intermediate
    return (
        recipe.learner.tokens_per_micro_batch * policy.layers * per_layer * _BYTES[recipe.learner.precision or "fp32"]
    )


def _gib(amount: float) -> str:
    return f"{amount / GIB:.2f} GiB" if amount >= GIB / 10 else f"{amount / 2**20:.1f} MiB"


# ---------------------------------------------------------------- models


def _model(spec: ModelSpec, shape: Shape | None) -> str:
    source = {"scratch": "new", "pretrained": getattr(spec, "path", ""), "packaged": getattr(spec, "package", "")}
    if shape is None:
        return f"{source[spec.kind]} (size unknown before it is downloaded)"
    return (
        f"{source[spec.kind]}: {shape.parameters / 1e6:,.2f}M parameters, {shape.layers} layers of width "
        f"{shape.hidden}, vocabulary {shape.vocabulary:,}"
    )
