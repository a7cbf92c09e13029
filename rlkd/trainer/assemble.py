"""Groups + verdicts + teacher scores -> rows for the learner, global denominators, and shares for the ranks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch

from reward.verdict import Verdict
from rlkd import objectives
from rlkd.advantages import add_shaping, group_advantages
from rlkd.learner.learner import Update
from rlkd.learner.loss import Denominators
from rlkd.learner.packing import group_cost, plan_micro_batches, split_groups
from rlkd.recipe import Recipe
from rlkd.records import Chunks, HiddenStates, RolloutGroup, TopK, TrainRow

_DISTILL_ROWS: dict[str, Literal["all", "wrong_responses", "wrong_groups"]] = {
    "none": "all",
    "response": "wrong_responses",
    "group": "wrong_groups",
}


@dataclass(frozen=True)
class Judged:
    """One step's groups with everything that is known about each rollout, flattened group by group."""

    groups: list[RolloutGroup]
    verdicts: list[Verdict]
    teacher_logprobs: list[list[float]] | None
    version: int  # the policy that will be trained
    views: Sequence[HiddenStates | TopK | Chunks | None] | None = None  # what teachers sent beside log-probs
    shaping: tuple[float, ...] | None = None  # added to each score before centring (a KL placed in the reward)

    def correct(self) -> torch.Tensor:
        """[B] fully right by the verifier's outcome."""
        return torch.tensor([verdict.score is not None and verdict.score >= 1.0 for verdict in self.verdicts])

    def group_ids(self) -> torch.Tensor:
        """[B] index of each rollout's group."""
        return torch.tensor([index for index, group in enumerate(self.groups) for _ in group.rollouts])


def advantages(recipe: Recipe, judged: Judged) -> list[float]:
    """Credit of each rollout: on the outcome, shaping added after; 0 for an abstained one."""
    scores = torch.tensor([v.score if v.score is not None else 0.0 for v in judged.verdicts], dtype=torch.float64)
    if judged.shaping is not None:
        scores = scores + torch.tensor(judged.shaping, dtype=torch.float64)
    valid = torch.tensor([not verdict.abstained for verdict in judged.verdicts])
    spec = recipe.advantage
    group_advantage = partial(group_advantages, group_ids=judged.group_ids(), valid=valid)
    if spec.kind == "group":
        credit = group_advantage(scores=scores, baseline=spec.baseline, scale=spec.scale)
    else:
        credit = group_advantage(scores=scores, baseline="none", scale="none")
    shaping = torch.tensor([sum(verdict.shaping.values()) for verdict in judged.verdicts], dtype=torch.float64)
    if bool(shaping.any()):
        centred = group_advantage(scores=shaping, baseline="mean", scale="none")  # shaping alone lifts no whole group
        credit = add_shaping(advantages=credit, shaping=centred, valid=valid)
    return [float(value) for value in credit]


def train_rows(recipe: Recipe, judged: Judged) -> list[TrainRow]:
    """One row a rollout. Teacher signal is kept for groups whose advantage is zero."""
    credit = advantages(recipe, judged)
    mode = _DISTILL_ROWS[getattr(recipe.objective, "mask", "none")]
    keep = objectives.distill_mask(rows=mode, correct=judged.correct(), group_ids=judged.group_ids())
    distills = recipe.objective.kind in ("kdrl", "distill", "opsd", "opd", "alm")
    rows = []
    for index, (group_index, rollout) in enumerate(
        (g, rollout) for g, group in enumerate(judged.groups) for rollout in group.rollouts
    ):
        cut = rollout.truncated and recipe.rollout.truncated == "mask"
        # A verdict that failed says nothing about the answer, but the teacher's opinion of the tokens still counts.
        judged_or_taught = not judged.verdicts[index].abstained or distills
        rows.append(
            TrainRow(
                group=group_index,
                prompt_ids=judged.groups[group_index].prompt.token_ids,
                completion_ids=rollout.completion_ids,
                rollout_logprobs=rollout.rollout_logprobs,
                advantage=credit[index],
                index=index,
                trained=judged_or_taught and not cut,
                distilled=bool(keep[index]),
                teacher_logprobs=tuple(judged.teacher_logprobs[index]) if judged.teacher_logprobs else None,
                staleness=judged.version - rollout.min_version,
                teacher_view=judged.views[index] if judged.views else None,
            )
        )
    return rows


def denominators(recipe: Recipe, rows: Sequence[TrainRow]) -> Denominators:
    """What one update divides by, over all ranks. See ``rlkd.objectives.reduce``."""
    kind = getattr(recipe.objective, "reduction", "token")

    def count(kept: Sequence[TrainRow]) -> float:
        if kind == "token":
            return float(sum(len(row.completion_ids) for row in kept))
        return float(len(kept)) * (recipe.rollout.max_new_tokens if kind == "constant" else 1)

    trained = [row for row in rows if row.trained]
    sampled = [row for row in trained if row.term == "sampled"]
    distilled = [row for row in sampled if row.distilled]
    if recipe.objective.kind == "alm":
        chunks = float(sum(len(row.teacher_view.ranges) for row in distilled if isinstance(row.teacher_view, Chunks)))
        return Denominators(policy=count(sampled), distill=chunks)
    critiques = [row for row in trained if row.term == "critique"]
    return Denominators(policy=count(sampled), distill=count(distilled), critique=count(critiques))


def plan_updates(recipe: Recipe, rows: Sequence[TrainRow], *, ranks: int) -> list[list[Update]]:
    """Updates per rank: ``result[rank][update]``.

    All rows of a problem belong to one update; an update takes consecutive problems, a rank the groups (rows that
    share a prompt) that even out its tokens.
    """
    problems: dict[int, list[TrainRow]] = {}
    for row in rows:
        problems.setdefault(row.group, []).append(row)
    units = [split_groups(part) for part in problems.values()]
    count = recipe.learner.updates_per_step
    shares: list[list[Update]] = [[] for _ in range(ranks)]
    for index in range(count):
        some = units[index * len(units) // count : (index + 1) * len(units) // count]
        chosen = [group for unit in some for group in unit]
        total = denominators(recipe, [row for group in chosen for row in group])
        update = share_update(chosen, total, ranks=ranks, token_budget=recipe.learner.tokens_per_micro_batch)
        for share, part in zip(shares, update, strict=True):
            share.append(part)
    return shares


def share_update(
    groups: Sequence[list[TrainRow]], total: Denominators, *, ranks: int, token_budget: int
) -> list[Update]:
    """One update's part of every rank: whole groups, tokens evened out, as many passes on each."""
    parts = _balance(groups, ranks)
    most = max(1, *(len(plan_micro_batches(part, token_budget=token_budget)) for part in parts))
    return [Update(tuple(part), total, most) for part in parts]


def _balance(groups: Sequence[list[TrainRow]], ranks: int) -> list[list[TrainRow]]:
    parts: list[list[TrainRow]] = [[] for _ in range(ranks)]
    load = [0] * ranks
    for group in sorted(groups, key=lambda rows: -group_cost(rows)):
        rank = load.index(min(load))
        parts[rank] += group
        load[rank] += group_cost(group)
    return parts
