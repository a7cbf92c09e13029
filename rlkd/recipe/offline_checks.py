"""Contradictions of offline stages, found before anything starts."""

from __future__ import annotations

from collections.abc import Iterator

from rlkd.recipe.models import ScratchModel, TeacherSpec
from rlkd.recipe.offline import SampledPairs, reads_wrong
from rlkd.recipe.schema import OfflineStage, Recipe


def offline_stages(recipe: Recipe) -> list[tuple[int, OfflineStage]]:
    """Offline stages and their places."""
    return [(index, stage) for index, stage in enumerate(recipe.stages) if isinstance(stage, OfflineStage)]


def sampled_pairs(recipe: Recipe) -> list[SampledPairs]:
    """What offline stages sample freshly."""
    return [stage.pairs for _, stage in offline_stages(recipe) if isinstance(stage.pairs, SampledPairs)]


def samples(recipe: Recipe, model: str) -> bool:
    """Whether an offline stage samples its traces from this one of the recipe's models."""
    return any(pairs.model == model for pairs in sampled_pairs(recipe))


def _sampled(recipe: Recipe) -> Iterator[str]:
    for index, stage in offline_stages(recipe):
        pairs = stage.pairs
        if not isinstance(pairs, SampledPairs):
            continue
        here = f"stages.{index}"
        if pairs.model == "teacher" and not isinstance(recipe.teacher, TeacherSpec):
            yield (
                f"{here}.pairs.model: 'teacher', but the recipe has no `teacher:` section with a model; "
                "write one, or model: policy"
            )
        if pairs.samples < 2 * pairs.pairs_per_problem:
            yield (
                f"{here}.pairs.pairs_per_problem: {pairs.pairs_per_problem} pairs need "
                f"{2 * pairs.pairs_per_problem} samples; given {pairs.samples}"
            )
        for name in ("max_prompt_tokens", "max_response_tokens"):
            sizing = {"max_prompt_tokens": "max_prompt_tokens", "max_response_tokens": "max_new_tokens"}[name]
            given, limit = getattr(stage, name), getattr(recipe.rollout, sizing)
            if given > limit:
                yield f"{here}.{name}: {given} exceeds rollout.{sizing} {limit}, for which the engines are built"


def _tokens_of_teacher(recipe: Recipe) -> Iterator[str]:
    teacher = recipe.teacher
    if not (
        samples(recipe, "teacher") and isinstance(teacher, TeacherSpec) and isinstance(recipe.policy, ScratchModel)
    ):
        return
    if isinstance(teacher.model, ScratchModel) and teacher.model.tokenizer != recipe.policy.tokenizer:
        yield "teacher.model.tokenizer: differs from policy.tokenizer; traces are taken over as tokens"


def _windows(recipe: Recipe) -> Iterator[str]:
    models = {"policy": recipe.policy}
    if samples(recipe, "teacher") and isinstance(recipe.teacher, TeacherSpec):
        models["teacher.model"] = recipe.teacher.model
    for index, stage in offline_stages(recipe):
        total = stage.max_prompt_tokens + stage.max_response_tokens
        for name, model in models.items():
            if isinstance(model, ScratchModel) and total > model.context_length:
                yield (
                    f"stages.{index}: max_prompt_tokens {stage.max_prompt_tokens} + max_response_tokens "
                    f"{stage.max_response_tokens} = {total} exceeds {name}.context_length {model.context_length}"
                )


def _schedule(recipe: Recipe) -> Iterator[str]:
    for index, stage in offline_stages(recipe):
        if stage.steps is not None and stage.optim.warmup_steps > stage.steps:
            yield f"stages.{index}.optim.warmup_steps: {stage.optim.warmup_steps} exceeds its {stage.steps} steps"


def _collapse(recipe: Recipe) -> Iterator[str]:
    for index, stage in offline_stages(recipe):
        if stage.collapse.action == "stop" and not reads_wrong(stage.objective):
            yield (
                f"stages.{index}.collapse.action: 'stop' watches right and wrong traces, and objective "
                f"'{stage.objective.kind}' reads no wrong ones here; write collapse: {{action: off}}"
            )


CHECKS = (_sampled, _tokens_of_teacher, _windows, _schedule, _collapse)
