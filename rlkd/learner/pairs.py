"""Learning from right and wrong traces under DeepSpeed: REDI, symmetric, SFT, DPO and SimPO on the same packed rows.

Every objective is written a row at a time, so that a pair may be cut over micro-batches. DPO and SimPO need both
scores of a pair in one loss: those come from a pass without gradient before, and each row is then trained with the
derivative of its pair's loss by its score. By the chain rule that is the gradient of the pair's loss.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rlkd import objectives
from rlkd.learner.figures import StepPass, add_figure
from rlkd.learner.learner import Learner, Update
from rlkd.learner.packing import MicroBatch
from rlkd.recipe import Recipe
from rlkd.recipe.objectives import GrpoObjective
from rlkd.recipe.offline import DpoObjective, PairObjective, PairSftObjective, RediObjective, SimpoObjective
from rlkd.recipe.schema import OfflineStage
from rlkd.records import TrainRow


class PairLearner(Learner):
    """The policy on pairs. A pair's rows share ``group``; their ``term`` is ``right`` or ``wrong``."""

    def __init__(self, recipe: Recipe, folder: Path, *, stage: OfflineStage, **options: Any) -> None:
        self.objective: PairObjective = stage.objective
        self.slopes: dict[int, float] = {}  # of the update at hand: row -> derivative of its pair's loss by its score
        super().__init__(_of_stage(recipe, stage), folder, **options)

    def _backward(self, update: Update, pass_: StepPass, *, first: bool) -> None:
        if isinstance(self.objective, DpoObjective | SimpoObjective):
            scores = self._pair_scores(update)
            reference = self._pair_scores(update, reference=True) if self._needs_reference() else None
            self.slopes, value = pair_slopes(self.objective, update.rows, scores, reference)
            add_figure(pass_.counts, "loss", value / update.denominators.policy, 0)
        super()._backward(update, pass_, first=first)

    def _loss(self, batch: MicroBatch, update: Update, pass_: StepPass, first: bool) -> Tensor:  # noqa: ARG002
        output = self.policy(batch, with_entropy=True)
        logprobs, mask = batch.scatter(output.logprobs), real_tokens(batch)
        slopes = [self.slopes.get(row.index, 0.0) for row in batch.rows]
        loss = row_loss(
            self.objective,
            policy_logprobs=logprobs,
            response_mask=mask,
            rejected=torch.tensor([row.term == "wrong" for row in batch.rows], device=mask.device),
            slopes=torch.tensor(slopes, dtype=torch.float32, device=mask.device),
            pairs=update.denominators.policy,
        )
        counts = pass_.counts
        if not self.slopes:
            add_figure(counts, "loss", float(loss.detach()), 0)
        for row, values in zip(batch.rows, logprobs.tolist(), strict=True):
            add_figure(counts, f"{row.term}_logprob", _score(values[: len(row.completion_ids)], normalised=True), 1)
        if output.entropy is not None:
            add_figure(counts, "entropy", float(output.entropy.detach().sum()), float(mask.sum()))
        return loss

    def _pair_scores(self, update: Update, *, reference: bool = False) -> dict[int, float]:
        """What the pair loss reads of each row: its log-probability, summed (DPO) or mean (SimPO)."""
        found = self._scores(update, reference=reference)
        normalised = isinstance(self.objective, SimpoObjective)
        return {index: _score(values, normalised=normalised) for index, values in found.items()}

    def _padding(self) -> Tensor:
        return self._padding_loss()  # the reference had its passes before

    def _needs_reference(self) -> bool:
        return isinstance(self.objective, DpoObjective)


def row_loss(
    objective: PairObjective,
    *,
    policy_logprobs: Tensor,
    response_mask: Tensor,
    rejected: Tensor,
    slopes: Tensor,
    pairs: float,
) -> Tensor:
    """One micro-batch's share of the objective; the shares of all micro-batches and ranks add up.

    Args:
        policy_logprobs: [B, T] nats, zero outside of ``response_mask``. Gradient flows here alone.
        rejected: [B] true for wrong traces.
        slopes: [B] of ``pair_slopes``, read by DPO and SimPO only.
        pairs: of the update, over all micro-batches and ranks.
    """
    if isinstance(objective, DpoObjective | SimpoObjective):
        per_token = slopes[:, None] * policy_logprobs
        kind: objectives.Reduction = "token" if isinstance(objective, DpoObjective) else "sequence"
        return objectives.reduce(per_token, response_mask, kind=kind, denominator=pairs)
    per_token = objectives.redi(
        policy_logprobs=policy_logprobs,
        rejected=rejected,
        rejected_weight=rejected_weight(objective),
        response_mask=response_mask,
        reweighting=objective.reweighting if isinstance(objective, RediObjective) else 0.0,
    )
    return objectives.reduce(per_token, response_mask, kind="sequence", denominator=pairs)


def rejected_weight(objective: PairObjective) -> float:
    """The paper's alpha of an objective of the REDI family."""
    if isinstance(objective, RediObjective):
        return objective.rejected_weight
    return 0.0 if isinstance(objective, PairSftObjective) else 1.0


def pair_slopes(
    objective: DpoObjective | SimpoObjective,
    rows: Sequence[TrainRow],
    scores: dict[int, float],
    reference: dict[int, float] | None,
) -> tuple[dict[int, float], float]:
    """(row index -> derivative of its pair's loss by its score, sum of the pairs' losses)."""
    pairs: dict[int, dict[str, int]] = {}
    for row in rows:
        pairs.setdefault(row.group, {})[row.term] = row.index
    chosen, rejected = ([pair[term] for pair in pairs.values()] for term in ("right", "wrong"))

    def vector(values: dict[int, float], of: list[int], *, trained: bool = False) -> Tensor:
        return torch.tensor([values[index] for index in of], dtype=torch.float64, requires_grad=trained)

    right, wrong = vector(scores, chosen, trained=True), vector(scores, rejected, trained=True)
    if isinstance(objective, DpoObjective):
        assert reference is not None
        loss = objectives.dpo(
            chosen=right,
            rejected=wrong,
            reference_chosen=vector(reference, chosen),
            reference_rejected=vector(reference, rejected),
            inverse_temperature=objective.inverse_temperature,
        )
    else:
        loss = objectives.simpo(
            chosen=right,
            rejected=wrong,
            inverse_temperature=objective.inverse_temperature,
            margin=objective.margin,
        )
    total = loss.sum()
    slopes = [slope.tolist() for slope in torch.autograd.grad(total, [right, wrong])]
    return dict(zip([*chosen, *rejected], [*slopes[0], *slopes[1]], strict=True)), float(total.detach())


def real_tokens(batch: MicroBatch) -> Tensor:
    """[B, C] where a completion has a token."""
    return batch.scatter(torch.ones_like(batch.targets)).bool()


def _score(logprobs: Sequence[float], *, normalised: bool) -> float:
    """Sum or mean of a row, added up in float64: a sum over 19,000 tokens outgrows float32."""
    return math.fsum(logprobs) / (len(logprobs) if normalised else 1)


def _of_stage(recipe: Recipe, stage: OfflineStage) -> Recipe:
    """The recipe as the learner of this stage reads it: no teacher, given traces are scored at temperature 1."""
    rollout = recipe.rollout.model_copy(update={"temperature": 1.0})
    others = {"objective": GrpoObjective(), "teacher": None, "privileged": None, "feedback": None}
    return recipe.model_copy(update={"optim": stage.optim, "rollout": rollout, **others})
