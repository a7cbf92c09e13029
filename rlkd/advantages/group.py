"""Advantages of a rollout relative to the other rollouts of its prompt."""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from rlkd.errors import NumericsError
from rlkd.tensors.checks import require_axes, require_floating, require_integers, require_mask, require_rows

Baseline = Literal["mean", "leave_one_out", "none"]
Scale = Literal["none", "std"]


def group_advantages(
    *,
    scores: Float[Tensor, " B"],
    group_ids: Int[Tensor, " B"],
    baseline: Baseline = "mean",
    scale: Scale = "none",
    valid: Bool[Tensor, " B"] | None = None,
    std_floor: float = 1e-6,
) -> Float[Tensor, " B"]:
    """Score minus its group's baseline, larger is better; divided by the group's spread if asked for.

        mean:           A_i = s_i - mean_j s_j
        leave_one_out:  A_i = s_i - mean_{j != i} s_j  =  (n / (n - 1)) (s_i - mean_j s_j)
        std:            A_i / max(sample std of the group, std_floor)

    Args:
        scores: [B] outcome of each rollout. Shaping (length, format) is added after this, never before.
        group_ids: [B] prompt of each rollout; any integers, rows in any order.
        baseline: what is subtracted. "mean" shrinks the expected gradient by 1 - 1/n, "leave_one_out" keeps it exact.
        scale: "none" (Dr.GRPO, RLOO) or "std" (GRPO; weights easy and hard prompts up).
        valid: [B] false for an abstained rollout: it leaves the baseline and gets advantage 0. Default: all valid.
        std_floor: > 0; smallest divisor.

    Returns: [B] in the scores' dtype, computed in float64. A group with fewer than two valid rollouts, or with equal
        scores, gets 0 under either baseline. With "std", |A| <= (n - 1) / sqrt(n) (sqrt(n) for leave_one_out).
    Gradient: none; scores are data.
    Raises: NumericsError for shapes or dtypes that don't fit, a non-finite valid score, or baseline "none" with scale
        "std" (a group without spread would be divided by the floor).
    Source: GRPO, DeepSeekMath (2402.03300); Dr.GRPO (2503.20783); RLOO (2402.14740).
    Differs: std is floored, not summed with an epsilon, so that it doesn't bias groups that have spread.
    Tested: test_rloo_gradient_is_exact, test_mean_baseline_shrinks_by_one_minus_one_over_n,
        test_abstained_rollouts_leave_the_baseline, test_trivial_groups_get_zero, test_std_advantages_are_bounded
    """
    valid = _checked(scores, group_ids, baseline, scale, valid, std_floor)
    values = scores.detach().double().where(valid, 0.0)  # scores are data, never trained
    groups = group_ids.unique(return_inverse=True)[1]
    counts = _group_sum(valid.double(), groups)[groups]
    centred = (values - _group_sum(values, groups)[groups] / counts.clamp(min=1)).where(valid, 0.0)
    if baseline == "none":
        return values.to(scores.dtype)
    # a rounding residue of equal scores is not a signal
    centred = centred.where(_has_spread(values, valid, groups), 0.0)
    advantages = centred * counts / (counts - 1).clamp(min=1) if baseline == "leave_one_out" else centred
    if scale == "std":
        variance = _group_sum(centred.square(), groups)[groups] / (counts - 1).clamp(min=1)
        advantages = advantages / variance.sqrt().clamp(min=std_floor)
    return advantages.to(scores.dtype)


def _group_sum(values: Tensor, groups: Tensor) -> Tensor:
    size = int(groups.max()) + 1 if groups.numel() else 0
    return values.new_zeros(size).index_add(0, groups, values)


def _has_spread(values: Tensor, valid: Tensor, groups: Tensor) -> Tensor:
    size = int(groups.max()) + 1 if groups.numel() else 0
    empty = values.new_zeros(size)
    highest = empty.scatter_reduce(0, groups, values.where(valid, -torch.inf), "amax", include_self=False)
    lowest = empty.scatter_reduce(0, groups, values.where(valid, torch.inf), "amin", include_self=False)
    return (highest > lowest)[groups]


def _checked(
    scores: Tensor, group_ids: Tensor, baseline: str, scale: str, valid: Tensor | None, std_floor: float
) -> Tensor:
    if baseline not in ("mean", "leave_one_out", "none") or scale not in ("none", "std"):
        raise NumericsError(
            f"baseline '{baseline}' with scale '{scale}': baseline is one of mean, leave_one_out, none; scale none, std"
        )
    if baseline == "none" and scale == "std":
        raise NumericsError("scale 'std' needs a baseline: write baseline 'mean' or 'leave_one_out', or scale 'none'")
    if not 0 < std_floor < float("inf"):
        raise NumericsError(f"std_floor is {std_floor}, but must be positive and finite")
    return usable_scores(scores, group_ids, valid)


def usable_scores(scores: Tensor, group_ids: Tensor, valid: Tensor | None) -> Tensor:
    """Which scores count: the valid ones. Raises: NumericsError when one of them is not finite, or nothing fits."""
    require_floating(scores=scores)
    require_axes("B", scores=scores)
    require_integers(group_ids=group_ids)
    require_rows(group_ids, scores, "group_ids", "scores")
    if valid is None:
        valid = torch.ones_like(scores, dtype=torch.bool)
    require_mask(valid, scores, "valid", "scores")
    if not bool(scores.isfinite().where(valid, True).all()):
        rows = (~scores.isfinite() & valid).nonzero().flatten().tolist()
        raise NumericsError(f"scores of rows {rows[:8]} are not finite; mark them as abstained (valid = False) instead")
    return valid
