"""Advantages of two-turn rollouts: answer, critique, revised answer (RLTF)."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from rlkd.advantages.group import group_advantages
from rlkd.errors import NumericsError
from rlkd.tensors.checks import require_floats, require_mask


def first_turn_advantages(
    *,
    first_scores: Float[Tensor, " B"],
    second_scores: Float[Tensor, " B"],
    group_ids: Int[Tensor, " B"],
    has_second_turn: Bool[Tensor, " B"],
    valid: Bool[Tensor, " B"] | None = None,
) -> Float[Tensor, " B"]:
    """Score of the revised answer minus the group's mean FIRST score: RLTF-SD's credit on log p(y1 | bare prompt).

        A_i = r1_i - mean_j r0_j

    Args:
        first_scores: [B] r0. second_scores: [B] r1, read only where has_second_turn.
        group_ids: [B] prompt of each rollout.
        has_second_turn: [B] false after early termination (the first answer was right): no self-distillation there.
        valid: [B] false where the first score abstained: it leaves the baseline, and the rollout gets 0.

    Returns: [B] in the scores' dtype; 0 without a second turn. No std normalisation.
    Gradient: none. The second-turn mean as baseline would leave no signal once revisions nearly always succeed
        (P(signal) = 1 - p^N - (1 - p)^N -> 0); this one stays until the first turn itself is right.
    Raises: NumericsError when shapes or dtypes don't fit, or a score that is read is not finite.
    Source: RLTF (2602.02482) Eq 7, Alg 1.
    Differs: as published; the released code centres by the second turn (its switch for Eq 7 has no effect).
    Tested: test_first_turn_baseline_keeps_signal_when_all_revisions_succeed, test_first_turn_advantages_by_hand
    """
    usable = torch.ones_like(first_scores, dtype=torch.bool) if valid is None else valid
    require_floats(first_scores=first_scores, second_scores=second_scores)
    require_mask(usable, first_scores, "valid", "first_scores")
    require_mask(has_second_turn, first_scores, "has_second_turn", "first_scores")
    read = has_second_turn & usable
    if not bool(second_scores.isfinite().where(read, True).all()):
        raise NumericsError("a second score that is read is not finite; mark the rollout as without a second turn")
    centred = group_advantages(scores=first_scores, group_ids=group_ids, baseline="mean", valid=usable)
    # r1 - mean r0 = (r0 - mean r0) + (r1 - r0), which also holds for groups without spread, whose mean is r0
    return (centred + second_scores - first_scores).where(read, 0.0)


def turn_advantages(
    *,
    first_scores: Float[Tensor, " B"],
    second_scores: Float[Tensor, " B"],
    group_ids: Int[Tensor, " B"],
    has_second_turn: Bool[Tensor, " B"],
    discount: float,
) -> tuple[Float[Tensor, " B"], Float[Tensor, " B"]]:
    """Credit of both turns of a two-turn rollout, each centred over the rollouts that have that turn.

        first:  G_i - mean G,  G_i = r0_i + discount * r1_i        second:  r1_i - mean r1

    Args:
        first_scores, second_scores, group_ids, has_second_turn: as in first_turn_advantages.
        discount: in [0, 1], gamma (0.1 in the released code; the paper is silent).

    Returns: ([B], [B]) advantages of the first and the second answer's tokens; the second is 0 without a second turn.
    Gradient: none.
    Raises: NumericsError when shapes, dtypes or the discount don't fit, or a score that is read is not finite.
    Source: RLTF (2602.02482) Alg 1, g_RL.
    Differs: as published.
    Tested: test_turn_advantages_by_hand
    """
    if not 0 <= discount <= 1:
        raise NumericsError(f"discount is {discount}, but must be in [0, 1]")
    require_floats(first_scores=first_scores, second_scores=second_scores)
    require_mask(has_second_turn, first_scores, "has_second_turn", "first_scores")
    returns = first_scores + discount * second_scores.where(has_second_turn, 0.0)
    first = group_advantages(scores=returns, group_ids=group_ids, baseline="mean")
    second = group_advantages(scores=second_scores, group_ids=group_ids, baseline="mean", valid=has_second_turn)
    return first, second
