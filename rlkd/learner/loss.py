"""A recipe's objective as one scalar: signal -> per-token loss -> reduction with global denominators."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from rlkd import objectives
from rlkd.recipe.objectives import (
    AnnealedCoef,
    CoefSchedule,
    ConstantCoef,
    DistillObjective,
    GrpoObjective,
    ImportanceCorrection,
    KdrlObjective,
    LinearCoef,
    Objective,
    PolicyGradient,
)
from rlkd.tensors import masked_sum, select

Stats = dict[str, tuple[Tensor, Tensor]]  # name -> (sum, count): adds up over micro-batches and ranks


@dataclass(frozen=True)
class Signals:
    """What pushes each token of a micro-batch; [B, T] is completion-aligned, nats throughout."""

    policy_logprobs: Tensor  # [B, T], gradient flows here alone
    proximal_logprobs: Tensor  # [B, T], the ratio's denominator: the policy before this step's first update
    rollout_logprobs: Tensor  # [B, T], as the engine measured them
    advantages: Tensor  # [B, T]
    response_mask: Tensor  # [B, T] trained tokens
    distill_rows: Tensor  # [B] where the teacher pulls
    teacher_logprobs: Tensor | None = None  # [B, T]
    reference_logprobs: Tensor | None = None  # [B, T]


@dataclass(frozen=True)
class Denominators:
    """Global counts of one update, over all micro-batches and ranks."""

    policy: float
    distill: float
    critique: float = 0.0  # of feedback rows (RLTF-FM)


Loss = Callable[[Signals, Denominators, int], tuple[Tensor, Stats]]


def build_loss(objective: Objective) -> Loss:
    """Compose the functions of ``rlkd.objectives`` that a recipe's objective names."""
    if isinstance(objective, GrpoObjective | KdrlObjective):
        return PolicyGradientLoss(objective)
    if isinstance(objective, DistillObjective):
        return _Distill(objective)
    from rlkd.learner.privileged_loss import build_privileged_loss

    return build_privileged_loss(objective)


def coefficient(schedule: CoefSchedule, step: int) -> float:
    """The distillation weight at a step."""
    if isinstance(schedule, ConstantCoef):
        return objectives.constant(step, value=schedule.value)
    if isinstance(schedule, AnnealedCoef):
        return objectives.anneal(step, initial=schedule.start, decrement=schedule.delta, minimum=schedule.end)
    if isinstance(schedule, LinearCoef):
        return objectives.linear(step, start=schedule.start, end=schedule.end, steps=schedule.steps)
    return objectives.hard_switch(step, at=schedule.at, before=schedule.value, after=0.0)


@dataclass(frozen=True)
class PolicyGradientLoss:
    """GRPO's surrogate, KDRL's teacher term and the reference KL."""

    objective: PolicyGradient

    def __call__(self, signals: Signals, denominators: Denominators, step: int) -> tuple[Tensor, Stats]:
        chosen, signals = self.objective, clean(signals)
        weight = coefficient(chosen.distill_coef, step) if isinstance(chosen, KdrlObjective) else 0.0
        advantages = signals.advantages
        if isinstance(chosen, KdrlObjective) and chosen.form == "advantage":
            advantages = objectives.additive_advantage(
                advantages=advantages,
                policy_logprobs=signals.policy_logprobs,
                teacher_logprobs=_teacher(signals),
                distill_coef=weight,
                keep=signals.distill_rows,
            )
        importance = correction(chosen.correction, signals)
        loss = reduced(chosen, surrogate(chosen, signals, advantages) * importance, signals, denominators)
        if isinstance(chosen, KdrlObjective) and chosen.form == "joint" and weight:
            loss = loss + weight * _distill_term(chosen.estimator, chosen.reduction, signals, denominators, importance)
        loss = loss + reference_term(chosen, signals, denominators)
        return loss, stats(replace(signals, advantages=advantages), chosen)


def reduced(chosen: PolicyGradient, per_token: Tensor, signals: Signals, denominators: Denominators) -> Tensor:
    """A per-token loss of the sampled rows as the objective reduces it."""
    return objectives.reduce(per_token, signals.response_mask, kind=chosen.reduction, denominator=denominators.policy)


def reference_term(chosen: PolicyGradient, signals: Signals, denominators: Denominators) -> Tensor | float:
    """kl_coef * reverse KL (k2) to the reference; ``signals`` are cleaned."""
    if not chosen.kl_coef or signals.reference_logprobs is None:
        return 0.0
    pull = objectives.reverse_kl_k2(
        policy_logprobs=signals.policy_logprobs, teacher_logprobs=signals.reference_logprobs
    )
    return chosen.kl_coef * reduced(chosen, pull, signals, denominators)


@dataclass(frozen=True)
class _Distill:
    """Reverse (k2) or forward (k3) KL to the teacher on the policy's own samples, nothing else."""

    objective: DistillObjective

    def __call__(self, signals: Signals, denominators: Denominators, step: int) -> tuple[Tensor, Stats]:
        del step
        signals = clean(signals)
        weight = correction(self.objective.correction, signals)
        loss = _distill_term(self.objective.estimator, self.objective.reduction, signals, denominators, weight)
        return loss, stats(signals, None)


def clean(signals: Signals) -> Signals:
    """Zero every masked slot by selection, so that junk in it reaches neither loss nor gradient."""
    mask = signals.response_mask

    def chosen(values: Tensor | None) -> Tensor | None:
        return None if values is None else select(values, mask)

    return replace(
        signals,
        policy_logprobs=select(signals.policy_logprobs, mask),
        proximal_logprobs=select(signals.proximal_logprobs, mask),
        rollout_logprobs=select(signals.rollout_logprobs, mask),
        advantages=select(signals.advantages, mask),
        teacher_logprobs=chosen(signals.teacher_logprobs),
        reference_logprobs=chosen(signals.reference_logprobs),
    )


def _teacher(signals: Signals) -> Tensor:
    if signals.teacher_logprobs is None:
        raise AssertionError("the trainer scores with the teacher whenever the objective reads it")
    return signals.teacher_logprobs


def surrogate(chosen: PolicyGradient, signals: Signals, advantages: Tensor) -> Tensor:
    if chosen.ratio == "sequence":
        return objectives.gspo(
            policy_logprobs=signals.policy_logprobs,
            rollout_logprobs=signals.proximal_logprobs,
            advantages=advantages,
            response_mask=signals.response_mask,
            clip_low=chosen.clip_low,
            clip_high=chosen.clip_high,
        )
    return objectives.clipped_surrogate(
        policy_logprobs=signals.policy_logprobs,
        rollout_logprobs=signals.proximal_logprobs,
        advantages=advantages,
        clip_low=chosen.clip_low,
        clip_high=chosen.clip_high,
        dual_clip=chosen.dual_clip,
    )


def correction(
    correction: ImportanceCorrection, signals: Signals, *, level: Literal["token", "sequence", "prefix"] | None = None
) -> Tensor | float:
    """Weight from the engine's distribution to the learner's at equal weights (plus staleness, if asynchronous)."""
    if correction.kind == "none":
        return 1.0
    level = level or correction.level
    shared = {
        "policy_logprobs": signals.proximal_logprobs,
        "rollout_logprobs": signals.rollout_logprobs,
        "response_mask": signals.response_mask,
    }
    if correction.kind == "truncate":
        return objectives.truncated_importance_weight(**shared, cap=correction.high, level=level)
    return objectives.masked_importance_weight(**shared, low=correction.low, high=correction.high, level=level)


def _distill_term(
    estimator: str, reduction: str, signals: Signals, denominators: Denominators, weight: Tensor | float = 1.0
) -> Tensor:
    per_token = objectives.loss_estimator(estimator)(
        policy_logprobs=signals.policy_logprobs, teacher_logprobs=_teacher(signals)
    )
    mask = signals.response_mask & signals.distill_rows[:, None]
    return objectives.reduce(per_token * weight, mask, kind=reduction, denominator=denominators.distill)  # type: ignore[arg-type]


def ratios(chosen: PolicyGradient, signals: Signals) -> Tensor:
    """[B, T] the ratio that the surrogate clips: of each token, or a row's geometric mean."""
    drift = signals.policy_logprobs - signals.proximal_logprobs
    if chosen.ratio == "sequence":
        mask = signals.response_mask
        drift = (select(drift, mask).sum(1, keepdim=True) / mask.sum(1, keepdim=True).clamp(min=1)).expand_as(drift)
    return drift.exp()


def clipped(chosen: PolicyGradient, ratio: Tensor, advantages: Tensor) -> Tensor:
    """[B, T] 1 where clipping takes the gradient: the ratio is outside on the side that the advantage pulls to."""
    above, below = ratio > 1 + chosen.clip_high, ratio < 1 - chosen.clip_low
    if chosen.dual_clip is not None:
        below = below | (ratio > chosen.dual_clip)
    return ((above & (advantages > 0)) | (below & (advantages < 0))).to(ratio.dtype)


def stats(signals: Signals, chosen: PolicyGradient | None, *, taught: Tensor | None = None) -> Stats:
    """Figures of the step, without gradient, each with its own count; ``taught``: [B, T] what a teacher scored."""
    with torch.no_grad():
        mask = signals.response_mask
        count = mask.sum()
        stats: Stats = {"policy_nll": (masked_sum(-signals.policy_logprobs, mask), count)}
        if chosen is not None:
            ratio = ratios(chosen, signals)
            stats["clip_fraction"] = (masked_sum(clipped(chosen, ratio, signals.advantages), mask), count)
            stats["ratio"] = (masked_sum(ratio, mask), count)
        if signals.teacher_logprobs is not None:
            gap = signals.policy_logprobs - signals.teacher_logprobs
            scored = mask if taught is None else taught
            stats["kl_to_teacher"] = (masked_sum(gap, scored), scored.sum())  # k1: unbiased for reverse KL, on-policy
        if signals.reference_logprobs is not None:
            stats["kl_to_reference"] = (masked_sum(signals.policy_logprobs - signals.reference_logprobs, mask), count)
        return stats
