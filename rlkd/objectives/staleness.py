"""Training on rollouts of older weights: clip against a recent policy, correct against the one that sampled."""

from __future__ import annotations

from jaxtyping import Bool, Float, Int
from torch import Tensor

from rlkd.errors import NumericsError
from rlkd.objectives.importance import Level, truncated_importance_weight
from rlkd.objectives.policy_gradient import clipped_surrogate
from rlkd.tensors.checks import require_axes, require_floats, require_integers


def decoupled_surrogate(
    *,
    policy_logprobs: Float[Tensor, "B T"],
    proximal_logprobs: Float[Tensor, "B T"],
    rollout_logprobs: Float[Tensor, "B T"],
    advantages: Float[Tensor, "B T"],
    response_mask: Bool[Tensor, "B T"],
    clip_low: float,
    clip_high: float,
    cap: float,
    level: Level = "token",
) -> Float[Tensor, "B T"]:
    """Clipped surrogate around a recent policy, times a truncated weight from it to the one that sampled.

        loss_t = min(proximal_t / rollout_t, cap) * clipped_surrogate(policy, proximal, A)_t

    Args:
        policy_logprobs: [B, T] nats. Gradient flows here.
        proximal_logprobs: [B, T] nats, of the policy at the start of this update: the trust region's centre.
        rollout_logprobs: [B, T] nats, of the (older, other-engine) weights that sampled. No gradient.
        advantages: [B, T]. No gradient.
        response_mask: [B, T] trained tokens.
        clip_low, clip_high: distances from 1; cap, level: as in truncated_importance_weight.

    Returns: [B, T] loss to minimise.
    Gradient: as clipped_surrogate, weighted; with one update a batch the ratio is 1 and the weight alone corrects.
    Raises: NumericsError when shapes, dtypes or settings don't fit.
    Source: decoupled PPO (2110.00641); AReaL (2505.24298) Eq 5.
    Differs: the weight is truncated; AReaL's paper leaves it free.
    Tested: test_decoupled_surrogate_is_exact_for_one_token, test_decoupled_surrogate_without_lag_is_the_surrogate
    """
    require_floats(proximal_logprobs=proximal_logprobs, rollout_logprobs=rollout_logprobs)
    surrogate = clipped_surrogate(
        policy_logprobs=policy_logprobs,
        rollout_logprobs=proximal_logprobs,
        advantages=advantages,
        clip_low=clip_low,
        clip_high=clip_high,
    )
    weight = truncated_importance_weight(
        policy_logprobs=proximal_logprobs,
        rollout_logprobs=rollout_logprobs,
        response_mask=response_mask,
        cap=cap,
        level=level,
    )
    return weight * surrogate


def fresh_enough(*, rollout_versions: Int[Tensor, " B"], policy_version: int, max_staleness: int) -> Bool[Tensor, " B"]:
    """Which rollouts are at most ``max_staleness`` optimizer updates behind (oldest token counts).

    Args:
        rollout_versions: [B] smallest policy_version of a rollout's tokens.
        policy_version: updates behind the current weights.
        max_staleness: >= 0 updates.

    Returns: [B].
    Raises: NumericsError for versions that aren't [B] integers, a negative limit, or a rollout from the future.
    Tested: test_fresh_enough
    """
    require_axes("B", rollout_versions=rollout_versions)
    require_integers(rollout_versions=rollout_versions)
    if max_staleness < 0:
        raise NumericsError(f"max_staleness is {max_staleness}, but must be >= 0")
    staleness = policy_version - rollout_versions
    if bool((staleness < 0).any()):
        newest = int(rollout_versions.max())
        raise NumericsError(f"a rollout has policy_version {newest}, after the policy's own, {policy_version}")
    return staleness <= max_staleness
