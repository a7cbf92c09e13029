"""How a step's rollouts become training rows: from which prompt they are sampled, and what each row is scored with."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from rlkd import objectives
from rlkd.data.privileged import THINK, copied, unclosed_thinking
from rlkd.learner.loss import coefficient
from rlkd.recipe import Recipe
from rlkd.recipe.objectives import OpsdObjective, PiDistillObjective
from rlkd.records import Prompt, TrainRow
from rlkd.trainer.assemble import Judged, train_rows

Figures = dict[str, float]
# rows and the exact divergence's name, or None for log-probs -> a number per completion token, in order
ScoreOther = Callable[[Sequence[TrainRow], str | None], list[list[float]]]


@dataclass(frozen=True)
class StepPlan:
    """One context: sampled from the student's prompt, one row a rollout."""

    recipe: Recipe
    score_other: ScoreOther
    notes: dict[int, dict[str, Any]] = field(default_factory=dict)  # of the latest step, by rollout, for the log

    def sampling_ids(self, prompt: Prompt) -> tuple[int, ...]:
        """What the rollout engine continues."""
        return prompt.token_ids

    def rows(self, judged: Judged, step: int) -> tuple[list[TrainRow], Figures]:
        """Rows for the learner and figures for the log."""
        del step
        return train_rows(self.recipe, judged), {}


@dataclass(frozen=True)
class SelfDistillPlan(StepPlan):
    """OPSD: sampled from the bare prompt, scored by the self-teacher on the privileged one."""

    def rows(self, judged: Judged, step: int) -> tuple[list[TrainRow], Figures]:
        objective = self.recipe.objective
        figures = leak_figures(self.recipe, judged)
        if isinstance(objective, OpsdObjective) and objective.kl_in == "reward":
            rows = _with_contexts(train_rows(self.recipe, judged), judged)
            coef = coefficient(objective.distill_coef, step)
            gaps = _sampled_gaps(rows, self.score_other(rows, None))
            judged, found = _penalised(judged, rows, gaps, coef)
            figures |= found
        return _with_contexts(train_rows(self.recipe, judged), judged), figures


@dataclass(frozen=True)
class PiDistillPlan(StepPlan):
    """pi-Distill: sampled with privileged information, trained with it and without it; plain RL where there is none."""

    def sampling_ids(self, prompt: Prompt) -> tuple[int, ...]:
        return prompt.teacher_ids

    def rows(self, judged: Judged, step: int) -> tuple[list[TrainRow], Figures]:
        objective = self.recipe.objective
        assert isinstance(objective, PiDistillObjective)
        figures = leak_figures(self.recipe, judged)
        if objective.kl_in == "reward":
            views = _privileged_views(train_rows(self.recipe, judged), judged)
            exact = objective.kl_estimator == "exact"
            other = self.score_other(views, "reverse_kl" if exact else None)
            gaps = other if exact else _sampled_gaps(views, other)
            judged, found = _penalised(judged, views, gaps, coefficient(objective.distill_coef, step))
            figures |= found
        views = _privileged_views(train_rows(self.recipe, judged), judged)
        taught = [row for row in views if row.teacher_prompt_ids is not None]
        bare = [_bare_view(row, index=len(views) + at) for at, row in enumerate(taught)]
        if objective.kl_in == "reward":  # already in the advantage: no second pass is needed
            views, bare = ([replace(row, teacher_prompt_ids=None) for row in rows] for rows in (views, bare))
        return [*views, *bare], figures


def _prompts(judged: Judged) -> list[Prompt]:
    return [group.prompt for group in judged.groups for _ in group.rollouts]


def _with_contexts(rows: Sequence[TrainRow], judged: Judged) -> list[TrainRow]:
    found = []
    for row, prompt in zip(rows, _prompts(judged), strict=True):
        ids = prompt.privileged.token_ids if prompt.privileged else None
        found.append(replace(row, teacher_prompt_ids=ids, distilled=row.distilled and ids is not None))
    return found


def _privileged_views(rows: Sequence[TrainRow], judged: Judged) -> list[TrainRow]:
    found = []
    for row, prompt in zip(rows, _prompts(judged), strict=True):
        if prompt.privileged is None:
            found.append(replace(row, distilled=False))
        else:
            ids, bare = prompt.privileged.token_ids, prompt.token_ids
            found.append(replace(row, prompt_ids=ids, teacher_prompt_ids=bare))
    return found


def _bare_view(row: TrainRow, *, index: int) -> TrainRow:
    assert row.teacher_prompt_ids is not None
    swapped = replace(row, prompt_ids=row.teacher_prompt_ids, teacher_prompt_ids=row.prompt_ids)
    return replace(swapped, term="bare", index=index)


def _sampled_gaps(rows: Sequence[TrainRow], other: Sequence[Sequence[float]]) -> list[list[float]]:
    """Sampler's minus other context's log-prob of each token: k1 of KL(sampler || other)."""
    return [
        [mine - theirs for mine, theirs in zip(row.rollout_logprobs, line, strict=True)]
        if row.teacher_prompt_ids is not None
        else [0.0] * len(line)
        for row, line in zip(rows, other, strict=True)
    ]


def _penalised(
    judged: Judged, rows: Sequence[TrainRow], gaps: Sequence[Sequence[float]], coef: float
) -> tuple[Judged, Figures]:
    """The KL placed in the reward, before centring."""
    lines = [torch.tensor(line, dtype=torch.float64) for line in gaps]
    padded = torch.nn.utils.rnn.pad_sequence(lines, batch_first=True)
    lengths = torch.tensor([len(line) for line in lines])
    mask = torch.arange(padded.shape[1])[None] < lengths[:, None]
    zero = torch.zeros(len(lines), dtype=torch.float64)
    shaped = objectives.penalised_scores(scores=zero, divergence=padded, response_mask=mask, distill_coef=coef)
    taught = sum(row.teacher_prompt_ids is not None for row in rows)
    figures = {
        "context_kl_per_rollout": float(padded.sum()) / max(1, taught),
        "kl_penalty": float(-shaped.sum()) / max(1, taught),
    }
    return replace(judged, shaping=tuple(shaped.tolist())), figures


def _opened(prompt: Prompt, shown: bool) -> str:
    """The thinking that a template opens itself, at the end of the prompt that a rollout continues."""
    text = prompt.privileged.text if shown and prompt.privileged else prompt.text
    return THINK if text.rstrip().endswith(THINK) else ""


def leak_figures(recipe: Recipe, judged: Judged) -> Figures:
    """How often privileged text is copied into a completion, and how often thinking is opened and never closed."""
    pairs = [(rollout, group.prompt) for group in judged.groups for rollout in group.rollouts]
    run = recipe.privileged.copied_run if recipe.privileged else 8
    told = [(rollout, prompt) for rollout, prompt in pairs if prompt.privileged is not None]
    shown = isinstance(recipe.objective, PiDistillObjective)  # sampled from the privileged prompt
    open_ended = sum(unclosed_thinking(_opened(prompt, shown) + rollout.text) for rollout, prompt in pairs)
    return {
        "privileged_copied": sum(copied(r.text, p, run=run) for r, p in told) / max(1, len(told)),
        "privileged_rows": len(told) / max(1, len(pairs)),
        "unclosed_thinking": open_ended / max(1, len(pairs)),
    }
