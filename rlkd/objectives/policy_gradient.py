"""Policy-gradient losses: what an advantage does to the log-probability of the token it belongs to."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from rlkd.errors import NumericsError
from rlkd.tensors.checks import as_float, require_axes, require_floats, require_mask

LOG_RATIO_BOUND = 20.0  # exp(20) = 4.9e8: beyond it a ratio is a fault, and exp would overflow into NaN gradients


def log_ratio(*, policy_logprobs: Float[Tensor, "B T"], rollout_logprobs: Float[Tensor, "B T"]) -> Float[Tensor, "B T"]:
    """Log of policy over rollout probability, bounded to +-20 so that its exponential is finite.

        log_ratio_t = clamp(policy_logprobs_t - rollout_logprobs_t, -20, 20)

    Args:
        policy_logprobs: [B, T] nats. Gradient flows here.
        rollout_logprobs: [B, T] nats, of the same tokens under the weights that sampled them. No gradient.

    Returns: [B, T] nats.
    Gradient: through policy_logprobs inside the bound, zero outside.
    Raises: NumericsError when shapes or dtypes don't fit.
    Tested: test_log_ratio_is_bounded
    """
    require_floats(policy_logprobs=policy_logprobs, rollout_logprobs=rollout_logprobs)
    rollout = as_float(rollout_logprobs).detach()  # the sampling distribution is data, never trained
    return (as_float(policy_logprobs) - rollout).clamp(-LOG_RATIO_BOUND, LOG_RATIO_BOUND)


def reinforce(*, policy_logprobs: Float[Tensor, "B T"], advantages: Float[Tensor, "B T"]) -> Float[Tensor, "B T"]:
    """Minus advantage times log-probability: the on-policy policy gradient.

        loss_t = -advantages_t * policy_logprobs_t

    Args:
        policy_logprobs: [B, T] nats, of tokens sampled from the policy itself. Gradient flows here.
        advantages: [B, T] credit of each token. No gradient.

    Returns: [B, T] loss to minimise; its value means nothing, only its gradient does.
    Gradient: E[grad loss] = -grad E[return], if advantages are returns minus a baseline free of the token.
    Raises: NumericsError when shapes or dtypes don't fit. An advantage or a log-probability that is not finite is not
        looked for: it stays visible in the loss.
    Source: Williams (1992); RLOO (2402.14740) with a leave-one-out baseline.
    Differs: as published.
    Tested: test_reinforce_gradient_is_exact, test_rloo_gradient_is_exact, test_non_finite_credit_is_not_hidden
    """
    require_floats(policy_logprobs=policy_logprobs, advantages=advantages)
    credit = as_float(advantages).detach()  # the advantage is data, never trained
    return -credit * as_float(policy_logprobs)


def clipped_surrogate(
    *,
    policy_logprobs: Float[Tensor, "B T"],
    rollout_logprobs: Float[Tensor, "B T"],
    advantages: Float[Tensor, "B T"],
    clip_low: float,
    clip_high: float,
    dual_clip: float | None = None,
) -> Float[Tensor, "B T"]:
    """Minus the clipped importance-weighted advantage (PPO, GRPO, DAPO), per token.

        ratio_t = exp(policy_logprobs_t - rollout_logprobs_t)
        loss_t  = -min(ratio_t A_t, clip(ratio_t, 1 - clip_low, 1 + clip_high) A_t)
        with dual_clip c:  loss_t = min(loss_t, -c A_t)  where A_t < 0

    Args:
        policy_logprobs: [B, T] nats. Gradient flows here.
        rollout_logprobs: [B, T] nats, same tokens, weights that sampled them. No gradient.
        advantages: [B, T]. No gradient.
        clip_low, clip_high: distances from 1, >= 0; math.inf switches a side off.
        dual_clip: > 1 or None; bounds the loss of a bad token that became much more likely.

    Returns: [B, T] loss to minimise.
    Gradient: ratio_t A_t grad policy_logprobs_t while the unclipped side is the smaller; zero where clipping acts.
    Raises: NumericsError when shapes or dtypes don't fit or a clip is out of range.
    Source: PPO (1707.06347) Eq 7; GRPO (2402.03300); DAPO clip-higher (2503.14476) Eq 8; dual clip (1912.09729) Eq 5.
    Differs: log-ratio bounded to +-20 (see log_ratio).
    Tested: test_surrogate_gradient_is_policy_gradient_at_ratio_one, test_surrogate_clips_each_side,
        test_dual_clip_bounds_bad_tokens, test_infinite_clip_is_importance_sampling
    """
    _check_clip(clip_low, clip_high)
    if dual_clip is not None and not dual_clip > 1:
        raise NumericsError(f"dual_clip is {dual_clip}, but must be above 1 or None")
    require_floats(policy_logprobs=policy_logprobs, advantages=advantages)
    credit = as_float(advantages).detach()  # the advantage is data, never trained
    ratio = log_ratio(policy_logprobs=policy_logprobs, rollout_logprobs=rollout_logprobs).exp()
    objective = torch.minimum(ratio * credit, ratio.clamp(1 - clip_low, 1 + clip_high) * credit)
    if dual_clip is not None:
        objective = torch.where(credit < 0, torch.maximum(objective, dual_clip * credit), objective)
    return -objective


def cispo(
    *,
    policy_logprobs: Float[Tensor, "B T"],
    rollout_logprobs: Float[Tensor, "B T"],
    advantages: Float[Tensor, "B T"],
    clip_low: float,
    clip_high: float,
) -> Float[Tensor, "B T"]:
    """REINFORCE weighted by the clipped, detached ratio: clipping bounds the weight and drops no token.

        loss_t = -sg[clip(ratio_t, 1 - clip_low, 1 + clip_high)] A_t policy_logprobs_t

    Args:
        policy_logprobs: [B, T] nats. Gradient flows here.
        rollout_logprobs: [B, T] nats, same tokens, weights that sampled them. No gradient.
        advantages: [B, T]. No gradient.
        clip_low, clip_high: distances from 1, >= 0; math.inf switches a side off (the paper uses no lower clip).

    Returns: [B, T] loss to minimise.
    Gradient: the weight is stopped, so every token keeps one; with both clips off, that of importance sampling.
    Raises: NumericsError when shapes or dtypes don't fit or a clip is out of range.
    Source: MiniMax-M1 (2506.13585) Eq 4-5.
    Differs: as published; normalisation is left to ``reduce``.
    Tested: test_cispo_keeps_every_token, test_infinite_clip_is_importance_sampling
    """
    _check_clip(clip_low, clip_high)
    ratio = log_ratio(policy_logprobs=policy_logprobs, rollout_logprobs=rollout_logprobs).exp()
    weight = ratio.clamp(1 - clip_low, 1 + clip_high).detach()  # the correction is a weight, never trained
    return weight * reinforce(policy_logprobs=policy_logprobs, advantages=advantages)


def gspo(
    *,
    policy_logprobs: Float[Tensor, "B T"],
    rollout_logprobs: Float[Tensor, "B T"],
    advantages: Float[Tensor, "B T"],
    response_mask: Bool[Tensor, "B T"],
    clip_low: float,
    clip_high: float,
) -> Float[Tensor, "B T"]:
    """Clipped surrogate whose ratio is the geometric mean over the whole sequence (one row is one sequence).

        s      = exp(mean_t log_ratio_t over trained tokens)
        s_t    = sg[s] policy_t / sg[policy_t]                      equal to s in value
        loss_t = -min(s_t A_t, clip(s_t, 1 - clip_low, 1 + clip_high) A_t)

    Args:
        policy_logprobs: [B, T] nats. Gradient flows here.
        rollout_logprobs: [B, T] nats, same tokens, weights that sampled them. No gradient.
        advantages: [B, T]; they may differ along a row, as distillation credit does. No gradient.
        response_mask: [B, T] trained tokens; a row is one sequence, so packed rows are not accepted here.
        clip_low, clip_high: distances from 1, >= 0 (the paper: 3e-4 and 4e-4).

    Returns: [B, T] loss to minimise; reduce it with kind "sequence" as the paper does.
    Gradient: s A_t grad policy_logprobs_t, zero where the sequence is clipped. Along a row of equal advantages the sum
        is the gradient of the sequence ratio itself; where they differ, every token gets its own, not the row's mean.
    Raises: NumericsError when shapes or dtypes don't fit or a clip is out of range.
    Source: GSPO (2507.18071) Eq 5-7, in the form of its GSPO-token (sec 4.3).
    Differs: log-ratios bounded to +-20.
    Tested: test_gspo_gradient_is_that_of_the_sequence_ratio, test_gspo_credits_each_token_with_its_own_advantage,
        test_gspo_is_token_surrogate_for_one_token
    """
    _check_clip(clip_low, clip_high)
    require_axes("B T", policy_logprobs=policy_logprobs)
    require_mask(response_mask, policy_logprobs, "response_mask", "policy_logprobs")
    require_floats(policy_logprobs=policy_logprobs, advantages=advantages)
    credit = as_float(advantages).detach()  # the advantage is data, never trained
    per_token = log_ratio(policy_logprobs=policy_logprobs, rollout_logprobs=rollout_logprobs)
    length = response_mask.sum(1, keepdim=True).clamp(min=1)
    per_token = per_token.where(response_mask, 0.0)
    mean = (per_token.sum(1, keepdim=True) / length).detach()  # the ratio's size; its slope is the token's own
    ratio = (mean + (per_token - per_token.detach())).exp()  # the difference is 0, its gradient isn't
    return -torch.minimum(ratio * credit, ratio.clamp(1 - clip_low, 1 + clip_high) * credit)


def _check_clip(clip_low: float, clip_high: float) -> None:
    if not (clip_low >= 0 and clip_high >= 0):
        raise NumericsError(f"clip_low is {clip_low} and clip_high {clip_high}, but both are distances from 1, >= 0")
