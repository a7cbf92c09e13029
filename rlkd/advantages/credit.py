"""From outcomes to tokens: who gets the credit, and what is added to it."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from rlkd.advantages.group import usable_scores
from rlkd.errors import NumericsError
from rlkd.tensors.checks import (
    as_float,
    require_axes,
    require_bool,
    require_floating,
    require_floats,
    require_integers,
    require_mask,
    require_rows,
    require_same_shape,
)


def to_tokens(advantages: Float[Tensor, " B"], response_mask: Bool[Tensor, "B T"]) -> Float[Tensor, "B T"]:
    """Every trained token of a rollout gets the rollout's advantage; other slots get 0.

    Raises: NumericsError when shapes or dtypes don't fit, or an advantage of a row with trained tokens is not finite.
    Tested: test_outcome_credit_reaches_trained_tokens_only
    """
    require_floating(advantages=advantages)
    require_bool(response_mask=response_mask)
    require_axes("B T", response_mask=response_mask)
    require_rows(advantages, response_mask, "advantages", "response_mask")
    bad = ~advantages.isfinite() & response_mask.any(1)
    if bool(bad.any()):
        raise NumericsError(f"advantages of rows {bad.nonzero().flatten().tolist()[:8]} are not finite")
    return as_float(advantages)[:, None].expand(response_mask.shape).where(response_mask, 0.0)


def reward_to_go(
    *, rewards: Float[Tensor, "B T"], response_mask: Bool[Tensor, "B T"], discount: float = 1.0
) -> Float[Tensor, "B T"]:
    """Sum of the rewards from each token on: credit for what a token makes of its future.

        G_t = rewards_t + discount * G_{next trained token}

    Args:
        rewards: [B, T] per token, e.g. -k1_value for sequence-level reverse KL. No gradient.
        response_mask: [B, T] trained tokens. Others (tool output, padding) neither earn, get nor discount anything.
        discount: in [0, 1] per trained token; 0 leaves token-local credit, 1 the whole sequence.

    Returns: [B, T]; 0 where the mask is false.
    Gradient: none; credit is data. With rewards = -k1_value, discount 1 and ``reinforce`` the expected gradient is that
        of the KL of whole sequences; with discount 0 that of each prefix's own KL (k2's). Two different objectives.
    Raises: NumericsError for shapes, dtypes or a discount that don't fit. A reward that is not finite is not looked
        for: it stays visible in the credit.
    Source: Williams (1992); MiniLLM (2306.08543) Eq 2 for reverse KL.
    Differs: as published.
    Tested: test_reward_to_go_gives_the_sequence_kl_gradient, test_discount_zero_is_token_local,
        test_reward_to_go_skips_untrained_tokens
    """
    require_floating(rewards=rewards)
    require_axes("B T", rewards=rewards)
    require_mask(response_mask, rewards, "response_mask", "rewards")
    if not 0 <= discount <= 1:
        raise NumericsError(f"discount is {discount}, but must be in [0, 1]")
    earned = as_float(rewards).detach().where(response_mask, 0.0)  # credit is data, never trained
    if discount == 1:
        return earned.flip(1).cumsum(1).flip(1).where(response_mask, 0.0)
    ahead = torch.zeros_like(earned[:, 0])
    credit = []
    for reward, trained in zip(earned.unbind(1)[::-1], response_mask.unbind(1)[::-1], strict=True):
        ahead = (reward + discount * ahead).where(trained, ahead)
        credit.append(ahead)
    return torch.stack(credit[::-1], 1).where(response_mask, 0.0) if credit else earned


def soft_overlong_penalty(
    *, lengths: Int[Tensor, " B"], max_length: int, buffer: int, factor: float = 1.0
) -> Float[Tensor, " B"]:
    """Minus a ramp over the last tokens before the limit: 0 up to max_length - buffer, -factor from max_length on.

        penalty = -factor * clamp((length - (max_length - buffer)) / buffer, 0, 1)

    Args:
        lengths: [B] generated tokens.
        max_length: the generation limit; buffer: in [1, max_length], tokens of the ramp.
        factor: >= 0 and finite, the full penalty.

    Returns: [B] in [-factor, 0], to be added to advantages by add_shaping, after normalisation on the outcome.
    Raises: NumericsError when the settings don't fit, or lengths are not [B] integers.
    Source: DAPO (2503.14476) Eq 13.
    Differs: DAPO adds it to the reward before normalisation, which gives all-wrong groups full-size phantom advantages.
    Tested: test_soft_overlong_ramp, test_shaping_after_normalisation_makes_no_phantom_advantages
    """
    require_axes("B", lengths=lengths)
    require_integers(lengths=lengths)
    if not 1 <= buffer <= max_length or not 0 <= factor < float("inf"):
        raise NumericsError(
            f"buffer {buffer}, max_length {max_length}, factor {factor}: 1 <= buffer <= max_length, 0 <= factor < inf"
        )
    return -factor * ((lengths - (max_length - buffer)) / buffer).clamp(0, 1)


def add_shaping(
    *, advantages: Float[Tensor, " B"], shaping: Float[Tensor, " B"], valid: Bool[Tensor, " B"] | None = None
) -> Float[Tensor, " B"]:
    """Advantage on the outcome plus shaping that no group statistics have touched; abstained rollouts stay at 0.

    Raises: NumericsError when shapes or dtypes don't fit, or the shaping of a valid rollout is not finite.
    Tested: test_shaping_after_normalisation_makes_no_phantom_advantages
    """
    require_floats(advantages=advantages, shaping=shaping)
    require_axes("B", advantages=advantages)
    require_bool(valid=valid)
    require_same_shape(advantages=advantages, valid=valid)
    if valid is None:
        valid = torch.ones_like(advantages, dtype=torch.bool)
    if not bool(shaping.isfinite().where(valid, True).all()):
        raise NumericsError("shaping of a valid rollout is not finite")
    return advantages + shaping.to(advantages.dtype).where(valid, 0.0)


def groups_with_signal(
    *, scores: Float[Tensor, " B"], group_ids: Int[Tensor, " B"], valid: Bool[Tensor, " B"] | None = None
) -> Bool[Tensor, " B"]:
    """Which rollouts belong to a group whose outcomes differ: DAPO's dynamic sampling keeps those, on the outcome.

    Drop a rollout only when nothing else trains on it: a group of equal scores still has distillation, cross-entropy
    and reference signal.

    Raises: NumericsError when shapes or dtypes don't fit, or a valid rollout's score is not finite.
    Source: DAPO (2503.14476) Eq 11.
    Differs: by outcome, never by shaped reward; equal outcomes of any value, not only all right or all wrong.
    Tested: test_groups_with_signal
    """
    usable = usable_scores(scores, group_ids, valid)
    _, groups = torch.unique(group_ids, return_inverse=True)
    size = int(groups.max()) + 1 if groups.numel() else 0
    empty = scores.new_zeros(size)
    highest = empty.scatter_reduce(0, groups, scores.where(usable, -torch.inf), "amax", include_self=False)
    lowest = empty.scatter_reduce(0, groups, scores.where(usable, torch.inf), "amin", include_self=False)
    return (highest > lowest)[groups]
