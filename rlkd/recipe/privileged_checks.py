"""Contradictions around privileged information, self-teachers, feedback and what a teacher sends."""

from __future__ import annotations

import re
from collections.abc import Iterator

from rlkd.recipe.coefficients import always_zero
from rlkd.recipe.models import RoutedTeachers, ScratchModel, TeacherSpec
from rlkd.recipe.objectives import (
    GroupAdvantage,
    OpdObjective,
    OpsdObjective,
    PiDistillObjective,
    RltfObjective,
)
from rlkd.recipe.privileged import SelfTeacher, ServerTeacher
from rlkd.recipe.schema import Recipe, SftStage

FEEDBACK_CONTEXTS = {"second_turn", "critique"}  # of an SFT stage

_PLACEHOLDER = re.compile(r"\{([A-Za-z0-9_.]+)\}")


def separate_teachers(recipe: Recipe) -> dict[str, TeacherSpec | ServerTeacher]:
    """Teachers other than the policy itself, by name; a lone one is called ``teacher``."""
    teacher = recipe.teacher
    if isinstance(teacher, RoutedTeachers):
        return dict(teacher.teachers)
    return {"teacher": teacher} if isinstance(teacher, TeacherSpec | ServerTeacher) else {}


def teacher_prompt_budget(recipe: Recipe) -> int:
    """Longest prompt with privileged text, tokens."""
    spec = recipe.privileged
    if spec is None:
        return recipe.rollout.max_prompt_tokens
    return spec.max_prompt_tokens or recipe.rollout.max_prompt_tokens + spec.max_tokens


def second_prompt_budget(recipe: Recipe) -> int:
    """Longest prompt of a second turn, tokens."""
    rollout, feedback = recipe.rollout, recipe.feedback
    if feedback is None:
        return rollout.max_prompt_tokens
    return feedback.max_prompt_tokens or rollout.max_prompt_tokens + rollout.max_new_tokens + 2 * feedback.max_tokens


def longest_sampled_prompt(recipe: Recipe) -> int:
    """Longest prompt that the rollout engine continues, tokens."""
    longest = recipe.rollout.max_prompt_tokens
    if recipe.objective.kind == "pi_distill":
        longest = max(longest, teacher_prompt_budget(recipe))
    return max(longest, second_prompt_budget(recipe)) if recipe.objective.kind == "rltf" else longest


def longest_prompt(recipe: Recipe) -> int:
    """Longest prompt that the policy itself ever sees, tokens; OPSD's teacher prompt stays in the learner."""
    longest = longest_sampled_prompt(recipe)
    return max(longest, teacher_prompt_budget(recipe)) if recipe.objective.kind == "opsd" else longest


def _sections(recipe: Recipe) -> Iterator[str]:
    objective = recipe.objective
    if isinstance(objective, OpsdObjective | PiDistillObjective) and recipe.privileged is None:
        yield (
            f"objective.kind: '{objective.kind}' has no privileged information; write a `privileged:` section, "
            "e.g. privileged: {field: solution}"
        )
    if isinstance(objective, OpsdObjective) and not isinstance(recipe.teacher, SelfTeacher):
        yield (
            "objective.kind: 'opsd' is taught by the policy itself; write teacher: {kind: self, weights: frozen}, "
            "or objective.kind: opd for a separate teacher"
        )
    if isinstance(recipe.teacher, SelfTeacher) and not isinstance(objective, OpsdObjective):
        remedy = "leave the section out" if objective.kind in ("pi_distill", "rltf", "grpo") else "write a model"
        yield f"teacher.kind: 'self' is read by objective 'opsd' only; with '{objective.kind}' {remedy}"
    warmed_up = {context for stage in recipe.stages if isinstance(stage, SftStage) for context in stage.contexts}
    if isinstance(objective, RltfObjective) and recipe.feedback is None:
        yield "feedback: objective 'rltf' needs it, e.g. feedback: {source: {kind: rule}}"
    if not isinstance(objective, RltfObjective) and recipe.feedback is not None and not warmed_up & FEEDBACK_CONTEXTS:
        yield f"feedback: is read by objective 'rltf', not by '{objective.kind}'; leave the section out"
    if recipe.privileged is not None and objective.kind in ("grpo", "rltf", "alm") and "privileged" not in warmed_up:
        yield f"privileged: objective '{objective.kind}' shows it to no one; leave the section out"
    if isinstance(objective, RltfObjective) and recipe.cluster.schedule == "async":
        yield "cluster.schedule: 'async' cannot sample a second turn ahead of the first; write schedule: sync"


def _stages(recipe: Recipe) -> Iterator[str]:
    for index, stage in enumerate(recipe.stages):
        if not isinstance(stage, SftStage) or stage.contexts == ["bare"]:
            continue
        where, contexts = f"stages.{index}.contexts", stage.contexts
        if len(set(contexts)) < len(contexts):
            yield f"{where}: {contexts} names one twice"
        if "privileged" in contexts and recipe.privileged is None:
            yield f"{where}: 'privileged', but the recipe has no `privileged:` section"
        told = FEEDBACK_CONTEXTS.intersection(contexts)
        if told and (recipe.feedback is None or recipe.feedback.source.kind != "rule"):
            yield f"{where}: '{min(told)}' takes its feedback by rule; write feedback: {{source: {{kind: rule}}}}"
        if stage.data is not None:
            yield f"{where}: {contexts} are for data.train; leave stages.{index}.data out"


def _template(recipe: Recipe) -> Iterator[str]:
    spec = recipe.privileged
    if spec is None:
        return
    names = set(_PLACEHOLDER.findall(spec.template))
    if "privileged" not in names:
        yield f"privileged.template: {spec.template!r} does not contain {{privileged}}"
    if not names & {"question", "prompt"}:
        yield f"privileged.template: {spec.template!r} shows the teacher no problem; write {{question}} or {{prompt}}"
    shown = set(_PLACEHOLDER.findall(recipe.data.prompt + (recipe.data.system or "")))
    if spec.field in shown or "privileged" in shown:
        yield f"data.prompt: shows the privileged field {{{spec.field}}} to the student"
    if spec.max_prompt_tokens is not None and spec.max_prompt_tokens <= spec.max_tokens:
        yield (
            f"privileged.max_prompt_tokens: {spec.max_prompt_tokens} must exceed max_tokens {spec.max_tokens}: the "
            "question and the template need room too"
        )


def _feedback_text(recipe: Recipe) -> Iterator[str]:
    spec = recipe.feedback
    if spec is None:
        return
    if "{feedback}" not in spec.revise:
        yield f"feedback.revise: {spec.revise!r} does not contain {{feedback}}"
    for name in ("question", "attempt"):
        if f"{{{name}}}" not in spec.critic:
            yield f"feedback.critic: {spec.critic!r} does not contain {{{name}}}"


def _windows(recipe: Recipe) -> Iterator[str]:
    if recipe.objective.kind not in ("opsd", "pi_distill", "rltf") or not isinstance(recipe.policy, ScratchModel):
        return
    total = longest_prompt(recipe) + recipe.rollout.max_new_tokens
    if total + (recipe.objective.kind != "opsd") > recipe.policy.context_length:  # an engine scores one token more
        where = "feedback" if recipe.objective.kind == "rltf" else "privileged"
        yield (
            f"{where}.max_prompt_tokens: a prompt of up to {longest_prompt(recipe)} tokens + rollout.max_new_tokens "
            f"{recipe.rollout.max_new_tokens} = {total} exceeds policy.context_length {recipe.policy.context_length}"
        )


def _teacher_window(recipe: Recipe) -> Iterator[str]:
    if recipe.privileged is None:
        return
    total = teacher_prompt_budget(recipe) + recipe.rollout.max_new_tokens
    for name, spec in separate_teachers(recipe).items():
        model = spec.model if isinstance(spec, TeacherSpec) else None
        if isinstance(model, ScratchModel) and total > model.context_length:
            yield f"privileged: prompt and completion of up to {total} tokens exceed {name}'s {model.context_length}"


def _transport(recipe: Recipe) -> Iterator[str]:
    objective, teachers = recipe.objective, separate_teachers(recipe)
    kinds = {spec.transport for spec in teachers.values()}
    if len(kinds) > 1:
        yield f"teacher.teachers: transports {sorted(kinds)} in one batch; use the same for all"
    if len({spec.top_k for spec in teachers.values() if spec.transport == "top_k"}) > 1:
        yield f"teacher.teachers: top_k {[spec.top_k for spec in teachers.values()]} in one batch; use the same for all"
    for name, spec in teachers.items():
        where = "teacher" if name == "teacher" else f"teacher.teachers.{name}"
        if isinstance(objective, OpdObjective):
            needed = ("sampled",) if objective.divergence == "sampled" else ("top_k", "hidden")
        else:
            needed = ("sampled",)
        if objective.kind in ("opd", "kdrl", "distill", "alm") and spec.transport not in needed:
            yield f"{where}.transport: '{spec.transport}', but the objective reads {' or '.join(needed)}"
        if isinstance(spec, TeacherSpec) and spec.transport == "hidden" and spec.engine != "transformers":
            yield f"{where}.engine: '{spec.engine}' returns no hidden states; write engine: transformers"
        if spec.transport == "top_k" and isinstance(objective, OpdObjective) and objective.clip is not None:
            yield "objective.clip: caps single vocabulary entries, which top_k's last bucket is not; write clip: null"
        if getattr(objective, "debias", None) is not None and getattr(spec, "engine", None) == "vllm":
            yield f"{where}.engine: 'vllm' has no mass of token sets, which objective.debias reads; write transformers"
        server = isinstance(spec, ServerTeacher)
        if server and objective.kind == "alm":
            yield f"{where}.kind: 'server' has no weights here, which objective 'alm' needs; write a model"
        if server and recipe.rollout.temperature != 1.0:
            yield f"rollout.temperature: {recipe.rollout.temperature}, but a server scores at temperature 1; write 1.0"


def _credit(recipe: Recipe) -> Iterator[str]:
    spec = recipe.advantage
    if isinstance(recipe.objective, RltfObjective) and not (
        isinstance(spec, GroupAdvantage) and spec.baseline == "mean" and spec.scale == "none"
    ):
        yield (
            "advantage: objective 'rltf' centres each turn by its group's mean and divides by nothing; write "
            "advantage: {kind: group, baseline: mean, scale: none}"
        )


def _shares(recipe: Recipe) -> Iterator[str]:
    objective = recipe.objective
    if isinstance(objective, PiDistillObjective):
        share = objective.teacher_share
        ends = [getattr(share, name) for name in ("value", "start", "end") if hasattr(share, name)]
        if any(end > 1 for end in ends):
            yield f"objective.teacher_share: {ends} leaves [0, 1]"
    taught = isinstance(objective, RltfObjective) and (objective.self_distill_coef, objective.feedback_coef)
    if taught and all(map(always_zero, taught)):
        yield "objective: 'rltf' with self_distill_coef and feedback_coef both 0 is two-turn GRPO without a purpose"


CHECKS = (
    _sections,
    _stages,
    _template,
    _feedback_text,
    _windows,
    _teacher_window,
    _transport,
    _credit,
    _shares,
)
