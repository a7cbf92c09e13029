"""Weights that correct for the gap between the engine that sampled a token and the policy that trains on it."""

from __future__ import annotations

from typing import Literal

from jaxtyping import Bool, Float
from torch import Tensor

from rlkd.errors import NumericsError
from rlkd.objectives.policy_gradient import LOG_RATIO_BOUND, log_ratio
from rlkd.tensors.checks import require_axes, require_mask

Level = Literal["token", "sequence", "geometric", "prefix"]


def truncated_importance_weight(
    *,
    policy_logprobs: Float[Tensor, "B T"],
    rollout_logprobs: Float[Tensor, "B T"],
    response_mask: Bool[Tensor, "B T"],
    cap: float,
    level: Level = "token",
) -> Float[Tensor, "B T"]:
    """Detached importance weight of each token, cut off at ``cap``: multiplies a per-token loss.

        weight_t = min(ratio_t, cap)
        ratio_t: token: exp(log_ratio_t); sequence: exp(sum_t log_ratio_t); geometric: exp(mean_t log_ratio_t)
                 prefix: exp(sum_{s<t} log_ratio_s), for a term that is an exact expectation over token t itself

    Args:
        policy_logprobs: [B, T] nats, the trainer's own, before the update (or at it). No gradient.
        rollout_logprobs: [B, T] nats, what the rollout engine recorded. No gradient.
        response_mask: [B, T] trained tokens; a row is one sequence.
        cap: > 0; the largest weight (math.inf: untruncated).
        level: what one ratio spans.

    Returns: [B, T] in (0, cap]; 1 where the mask is false.
    Gradient: none; a weight is never trained.
    Raises: NumericsError when shapes or dtypes don't fit, or cap is not positive. A log-probability that is not finite
        stays visible: NaN gives NaN, never a dropped token.
    Source: "Your efficient RL framework secretly brings you off-policy RL" (TIS, Yao et al. 2025); IMPALA (1802.01561).
    Differs: log-ratios bounded to +-20, per token and in sum.
    Tested: test_truncated_weight_is_capped, test_untruncated_sequence_weight_is_unbiased,
        test_off_policy_k2_needs_the_importance_weight, test_nan_is_not_taken_for_an_outlier,
        test_an_exact_divergence_needs_the_weight_of_its_prefix
    """
    if not cap > 0:
        raise NumericsError(f"cap is {cap}, but must be positive")
    return _ratio(policy_logprobs, rollout_logprobs, response_mask, level).clamp(max=cap).where(response_mask, 1.0)


def masked_importance_weight(
    *,
    policy_logprobs: Float[Tensor, "B T"],
    rollout_logprobs: Float[Tensor, "B T"],
    response_mask: Bool[Tensor, "B T"],
    low: float,
    high: float,
    level: Level = "token",
) -> Float[Tensor, "B T"]:
    """Detached importance weight of each token, 0 outside [low, high]: multiplies a per-token loss.

        weight_t = ratio_t  if low <= ratio_t <= high else 0          (ratio_t as in truncated_importance_weight)

    Args:
        policy_logprobs: [B, T] nats, the trainer's own. No gradient.
        rollout_logprobs: [B, T] nats, what the rollout engine recorded. No gradient.
        response_mask: [B, T] trained tokens; a row is one sequence.
        low, high: 0 <= low <= 1 <= high.
        level: what one ratio spans; "sequence" and "geometric" keep or drop whole rows.

    Returns: [B, T], 0 or in [low, high]; 1 where the response mask is false.
    Gradient: none; a weight is never trained.
    Raises: NumericsError when shapes or dtypes don't fit, or the interval doesn't hold 1. NaN stays NaN.
    Source: IcePop (token level; Ring-1T, 2510.18855); masked importance sampling (sequence level; Liu et al. 2025).
    Differs: dropped tokens stay in the denominator of ``reduce``, so that dropping never scales others up.
    Tested: test_masked_weight_drops_outliers, test_sequence_masked_weight_drops_rows,
        test_nan_is_not_taken_for_an_outlier
    """
    if not 0 <= low <= 1 <= high:
        raise NumericsError(f"[low, high] is [{low}, {high}], but must hold 1 and not reach below 0")
    ratio = _ratio(policy_logprobs, rollout_logprobs, response_mask, level)
    is_outlier = (ratio < low) | (ratio > high)  # false for NaN: a fault must not pass for an outlier
    return ratio.masked_fill(is_outlier, 0.0).where(response_mask, 1.0)


def _ratio(policy_logprobs: Tensor, rollout_logprobs: Tensor, response_mask: Tensor, level: str) -> Tensor:
    require_axes("B T", policy_logprobs=policy_logprobs)
    require_mask(response_mask, policy_logprobs, "response_mask", "policy_logprobs")
    if level not in ("token", "sequence", "geometric", "prefix"):
        raise NumericsError(f"level is '{level}', but must be token, sequence, geometric or prefix")
    per_token = log_ratio(policy_logprobs=policy_logprobs.detach(), rollout_logprobs=rollout_logprobs)  # a weight only
    per_token = per_token.where(response_mask, 0.0)
    if level == "token":
        return per_token.exp()
    if level == "prefix":
        return (per_token.cumsum(1) - per_token).clamp(-LOG_RATIO_BOUND, LOG_RATIO_BOUND).exp()
    total = per_token.sum(1, keepdim=True)
    if level == "geometric":
        total = total / response_mask.sum(1, keepdim=True).clamp(min=1)
    return total.clamp(-LOG_RATIO_BOUND, LOG_RATIO_BOUND).exp().expand_as(per_token)
