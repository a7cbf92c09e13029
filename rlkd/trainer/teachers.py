"""Separate teachers of a stage: one fleet each, rows routed by a data field, answers as the objective reads them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rlkd.cluster import Pending, gather
from rlkd.errors import RecipeError, did_you_mean
from rlkd.models import context_length, load_tokenizer
from rlkd.recipe import Recipe
from rlkd.recipe.models import RoutedTeachers, TeacherSpec
from rlkd.recipe.privileged import ServerTeacher
from rlkd.recipe.privileged_checks import separate_teachers
from rlkd.records import HiddenStates, Prompt, RolloutGroup, TopK
from rlkd.trainer.context import ROLLOUT_WORKER, Run
from rlkd.trainer.fleet import Dealt, Fleet, Turn

TRANSFORMERS_TEACHER = "rlkd.teacher.transformers_teacher:TransformersTeacher"
SERVER_TEACHER = "rlkd.teacher.server_teacher:ServerTeacherWorker"
View = HiddenStates | TopK | None
_FOREIGN = 4  # tokens of another vocabulary, and its template's own, for one of the policy's; longer rows are left out
_METHODS = {"sampled": "score", "top_k": "top_k", "hidden": "hidden"}


@dataclass
class TeacherPanel:
    """Every separate teacher, by name."""

    recipe: Recipe
    fleets: dict[str, Fleet]
    folders: dict[str, Path]  # of those whose weights are here

    @classmethod
    def of(cls, run: Run, folders: Mapping[str, Path]) -> TeacherPanel:
        """Fleets that are not started yet."""
        specs = separate_teachers(run.recipe)
        fleets = {name: _fleet(run, name, spec, folders) for name, spec in specs.items()}
        local = {name: folders[name] for name, spec in specs.items() if isinstance(spec, TeacherSpec)}
        panel = cls(run.recipe, fleets, local)
        for prompt in run.train_prompts:
            panel.route(prompt)
        return panel

    @property
    def shares_tokens(self) -> bool:
        """Whether teachers and policy have one tokenizer."""
        return self.recipe.objective.kind != "alm"

    @property
    def transport(self) -> str:
        return next(iter(separate_teachers(self.recipe).values())).transport

    def route(self, prompt: Prompt) -> str:
        """Which teacher scores a prompt's rollouts. Raises: RecipeError when none does."""
        teacher = self.recipe.teacher
        if not isinstance(teacher, RoutedTeachers):
            return next(iter(self.fleets))
        given = prompt.example.fields.get(teacher.field)
        value = "" if given is None else str(given)
        if value in self.fleets:
            return value
        if teacher.default is None or teacher.default not in self.fleets:
            raise RecipeError(
                f"teacher.field: row {prompt.example.id} has {teacher.field} = '{value}'"
                f"{did_you_mean(value, self.fleets)}; teachers: {', '.join(self.fleets)}. Add one, or name a "
                "teacher.default"
            )
        return teacher.default

    def served_tokenizers(self) -> list[Any]:
        """Tokenizers that the recipe names for teachers on servers."""
        specs = separate_teachers(self.recipe).values()
        return [load_tokenizer(spec.tokenizer) for spec in specs if isinstance(spec, ServerTeacher)]

    def start(self, count: int) -> list[Pending]:
        """Start ``count`` workers of each."""
        return [call for fleet in self.fleets.values() for call in fleet.start(count)]

    def start_in_turn(self, count: int, deadline_s: float) -> None:
        """``start`` and wait, one teacher after the other where they share GPUs; each then leaves its GPU alone."""
        for fleet in self.fleets.values():
            gather(fleet.start(count), deadline_s)
            if not isinstance(fleet.settings, ServerTeacher):
                fleet.turn("sleep")

    def turn(self, turn: Turn) -> None:
        """Teachers beside a learner give it their GPU, or take it back."""
        for name in self.folders:
            self.fleets[name].turn(turn)

    def stop(self) -> None:
        for fleet in self.fleets.values():
            fleet.stop()

    def ask(self, groups: Sequence[RolloutGroup]) -> Asked:
        """Start scoring every rollout on what its teacher sees."""
        places: dict[str, list[int]] = {name: [] for name in self.fleets}
        pairs: list[tuple[tuple[int, ...], tuple[int, ...]]] = []
        for group in groups:
            name = self.route(group.prompt)
            for rollout in group.rollouts:
                places[name].append(len(pairs))
                pairs.append((group.prompt.teacher_ids, rollout.completion_ids))
        specs = separate_teachers(self.recipe)
        calls = {}
        for name, indices in places.items():
            if indices:
                options = {"k": specs[name].top_k} if self.transport == "top_k" else {}
                method = _METHODS[self.transport]
                calls[name] = self.fleets[name].map(method, [pairs[i] for i in indices], **options)
        return Asked(calls, places, len(pairs), self.transport)


@dataclass(frozen=True)
class Asked:
    """Scores on their way."""

    calls: dict[str, Dealt]
    places: dict[str, list[int]]
    count: int
    transport: str

    def answers(self) -> tuple[list[list[float]] | None, list[View]]:
        """(log-probs of sampled tokens or None, views), one a rollout, in the order of the rollouts."""
        found: list[Any] = [None] * self.count
        for name, dealt in self.calls.items():
            values = dealt.in_order(dealt.results())
            for index, value in zip(self.places[name], values, strict=True):
                found[index] = HiddenStates(value, name) if self.transport == "hidden" else value
        if self.transport == "sampled":
            return found, [None] * self.count
        return None, found


def _fleet(run: Run, name: str, spec: TeacherSpec | ServerTeacher, folders: Mapping[str, Path]) -> Fleet:
    deadline = run.recipe.cluster.step_deadline_s
    kind = "TeacherWorker" if name == "teacher" else f"TeacherWorker-{name}"
    if isinstance(spec, ServerTeacher):
        return Fleet(run.cluster, kind, spec, SERVER_TEACHER, deadline, gpus=0.0)
    on_vllm = spec.engine == "vllm"
    options = {"temperature": run.recipe.rollout.temperature, "tokens_per_batch": spec.tokens_per_batch}
    top_k = spec.top_k if spec.transport == "top_k" else 0
    settings = run.engine_settings(folders[name], scores=True, top_k=top_k)
    if run.recipe.objective.kind == "alm":  # budgets count the policy's tokens; another tokenizer may need more
        window = context_length(folders[name])
        if on_vllm:  # which reserves memory for all of it
            window = min(window, _FOREIGN * settings.max_model_len)
        settings = replace(settings, max_model_len=window)
    return Fleet(
        cluster=run.cluster,
        kind=kind,
        settings=settings,
        target=ROLLOUT_WORKER if on_vllm else TRANSFORMERS_TEACHER,
        deadline_s=deadline,
        gpus=run.gpu_part if run.beside else float(run.recipe.engine.tensor_parallel if on_vllm else 1),
        bundles=run.bundles if run.beside else None,
        build_options={} if on_vllm else options,
    )
