"""Losses on given targets: supervised fine-tuning, weighted targets, mixtures of targets and teacher."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from rlkd.errors import NumericsError
from rlkd.tensors.checks import as_float, require_axes, require_bool, require_floating, require_floats, require_rows


def cross_entropy(
    *, policy_logprobs: Float[Tensor, "B T"], weights: Float[Tensor, " B"] | None = None
) -> Float[Tensor, "B T"]:
    """Minus the log-probability of given tokens, optionally weighted by row: SFT, and RLTF-FM on critique tokens.

        loss_t = -weight * policy_logprobs_t

    Args:
        policy_logprobs: [B, T] nats, of the target tokens. Gradient flows here.
        weights: [B] >= 0, finite (weighted SFT); default 1. Negative targets are REDI's business (see redi).

    Returns: [B, T] loss to minimise.
    Gradient: for targets sampled from a teacher, E[grad] = grad KL(teacher || policy) of whole sequences.
    Raises: NumericsError when a weight is negative or not finite, or shapes or dtypes don't fit.
    Source: SFT; REDI (2505.24850) Eq 1; RLTF-FM (2602.02482) l_FM; sequence-level KD (1606.07947).
    Differs: weighted rows keep the plain denominator of ``reduce``: a weight of 0 is not a dropped row.
    Tested: test_cross_entropy_on_teacher_samples_is_forward_kl, test_weighted_rows
    """
    require_floating(policy_logprobs=policy_logprobs)
    loss = -as_float(policy_logprobs)
    if weights is None:
        return loss
    return loss * _row_weights(weights, loss, upper=float("inf"))


def per_sample_mixture(
    *, distillation: Float[Tensor, "B T"], supervised: Float[Tensor, "B T"], weights: Float[Tensor, " B"]
) -> Float[Tensor, "B T"]:
    """Each row's own balance of teacher and target: a * distillation + (1 - a) * supervised.

    Args:
        distillation: [B, T] loss against a teacher. Gradient flows here.
        supervised: [B, T] loss against targets, or a policy-gradient loss. Gradient flows here.
        weights: [B] in [0, 1], a (from trilateral_weights, or ground_truth_weight for self-distillation). No gradient.

    Returns: [B, T] loss to minimise.
    Gradient: through both losses; weights are data.
    Raises: NumericsError when a weight leaves [0, 1] or shapes or dtypes don't fit.
    Source: TGeo-KD (2312.15112) Eq 1; GKD mixtures (2306.13649) with one weight for all; data pruning (2403.07854).
    Differs: no temperature-squared factor on the distillation term.
    Tested: test_per_sample_mixture
    """
    require_floats(distillation=distillation, supervised=supervised)
    share = _row_weights(weights, distillation, upper=1.0)
    return share * as_float(distillation) + (1 - share) * as_float(supervised)


def mixed_source_weights(*, on_policy: Bool[Tensor, " B"], on_policy_share: float) -> Float[Tensor, " B"]:
    """Row weights that give on-policy rows a fixed share of the loss, whatever their number (GKD's lambda).

        weight = share / fraction of on-policy rows,  or  (1 - share) / fraction of other rows

    Args:
        on_policy: [B] whether the policy sampled the row (else: dataset). Global, as a denominator is.
        on_policy_share: in [0, 1], GKD's lambda: 0 supervised KD, 1 on-policy KD.

    Returns: [B] float32 with mean 1 (a kind that is absent loses its share: then the mean is the other's share).
    Raises: NumericsError when the share leaves [0, 1], or on_policy is not [B] booleans.
    Source: GKD (2306.13649) Alg 1, in expectation (the paper draws the source of each batch with probability lambda).
    Tested: test_mixed_source_weights_give_the_share
    """
    require_bool(on_policy=on_policy)
    require_axes("B", on_policy=on_policy)
    if not 0 <= on_policy_share <= 1:
        raise NumericsError(f"on_policy_share is {on_policy_share}, but must be in [0, 1]")
    count, total = on_policy.sum(), max(1, on_policy.numel())
    sampled = on_policy_share * total / count.clamp(min=1)
    given = (1 - on_policy_share) * total / (total - count).clamp(min=1)
    return torch.where(on_policy, sampled, given)


def ground_truth_weight(
    *, target: Float[Tensor, " N"], self_distilled: Float[Tensor, " N"], supervised: Float[Tensor, " N"], floor: float
) -> Float[Tensor, ""]:
    """The weight of verified data that would have predicted a validation set best, in iterated self-distillation.

        a = <y - g, h - g> / ||h - g||^2, clamped to [floor, 1]

    Args:
        target: [N] y, validation targets. self_distilled: [N] g, predictions after pure self-distillation.
        supervised: [N] h, predictions after training on the ground truth.
        floor: in (0, 1]; without ground truth iterated self-distillation collapses (its fixed point is 0).

    Returns: scalar a in [floor, 1]; 1 when g and h agree, since then nothing speaks for self-distillation.
    Gradient: none; a weight is data.
    Raises: NumericsError when shapes, dtypes or the floor don't fit, or a prediction is not finite.
    Source: "Even your Teacher Needs Guidance" (2102.13088); closed form derived for squared loss.
    Differs: the floor is ours; the paper's estimator for deep networks was not readable.
    Tested: test_ground_truth_weight_minimises_validation_error, test_self_distillation_fixed_point
    """
    require_floats(target=target, self_distilled=self_distilled, supervised=supervised)
    if not 0 < floor <= 1:
        raise NumericsError(f"floor is {floor}, but must be in (0, 1]")
    # all three are data, never trained
    y, g, h = (as_float(values).detach() for values in (target, self_distilled, supervised))
    distance = (h - g).square().sum()
    if not bool(distance.isfinite() & y.isfinite().all()):
        raise NumericsError("target, self_distilled and supervised must be finite, and their distances too")
    if not bool(distance > 0):
        return torch.ones_like(distance)
    return (((y - g) * (h - g)).sum() / distance).clamp(floor, 1.0)


def _row_weights(weights: Tensor, values: Tensor, upper: float) -> Tensor:
    require_floating(weights=weights)
    require_rows(weights, values, "weights", "the loss")
    if not bool(((weights >= 0) & (weights <= upper) & weights.isfinite()).all()):
        raise NumericsError(
            f"weights span {float(weights.min())} to {float(weights.max())}, but must be in [0, {upper}]"
        )
    return weights.detach().to(values.dtype)[:, None]  # weights are data, never trained
