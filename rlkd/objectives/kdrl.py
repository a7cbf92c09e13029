"""KDRL: reinforcement learning and on-policy distillation at the same tokens."""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from rlkd.errors import NumericsError
from rlkd.objectives.estimators import k1_value, reverse_kl_k2
from rlkd.tensors.checks import as_float, require_bool, require_floats, require_integers, require_rows

DistillRows = Literal["all", "wrong_responses", "wrong_groups"]


def kdrl_joint(
    *,
    policy_loss: Float[Tensor, "B T"],
    policy_logprobs: Float[Tensor, "B T"],
    teacher_logprobs: Float[Tensor, "B T"],
    distill_coef: float,
    keep: Bool[Tensor, " B"] | None = None,
) -> Float[Tensor, "B T"]:
    """Policy-gradient loss plus the k2 reverse-KL loss on the same tokens: KDRL's joint loss.

        loss_t = policy_loss_t + distill_coef * keep * (policy_logprobs_t - teacher_logprobs_t)^2 / 2

    Args:
        policy_loss: [B, T] to minimise, e.g. clipped_surrogate. Gradient flows here.
        policy_logprobs: [B, T] nats, of tokens sampled from the policy. Gradient flows here.
        teacher_logprobs: [B, T] nats, of the same tokens. No gradient.
        distill_coef: >= 0 (the paper's beta).
        keep: [B] rows that are distilled (see distill_mask); default all.

    Returns: [B, T] loss to minimise.
    Gradient: policy gradient + distill_coef * grad KL(policy || teacher); while the ratio is 1 the same as that of
        additive_advantage.
    Raises: NumericsError when shapes or dtypes don't fit, or the coefficient is negative or not finite.
    Source: KDRL (2506.02208) Eq 8.
    Differs: distilled rows share the policy loss's denominator; the paper's own for masked terms is not known. To
        average over kept tokens instead, reduce the two terms apart, each with its own mask.
    Tested: test_joint_equals_additive_when_on_policy, test_zero_advantage_still_distils
    """
    require_floats(policy_loss=policy_loss, policy_logprobs=policy_logprobs)
    distillation = reverse_kl_k2(policy_logprobs=policy_logprobs, teacher_logprobs=teacher_logprobs)
    return policy_loss + _coefficient(distill_coef) * _kept(distillation, keep)


def additive_advantage(
    *,
    advantages: Float[Tensor, "B T"],
    policy_logprobs: Float[Tensor, "B T"],
    teacher_logprobs: Float[Tensor, "B T"],
    distill_coef: float,
    keep: Bool[Tensor, " B"] | None = None,
) -> Float[Tensor, "B T"]:
    """Advantage plus the teacher's detached log-ratio: distillation as credit, added after group normalisation.

        A'_t = A_t + distill_coef * keep * sg[teacher_logprobs_t - policy_logprobs_t]

    Args:
        advantages: [B, T], already centred and scaled (0 for pure on-policy distillation, KD-RKL).
        policy_logprobs: [B, T] nats, of tokens sampled from the policy. No gradient.
        teacher_logprobs: [B, T] nats, of the same tokens. No gradient.
        distill_coef: >= 0 (the paper's beta).
        keep: [B] rows that are distilled (see distill_mask); default all.

    Returns: [B, T] advantages for any policy-gradient loss.
    Gradient: none here; through the loss that uses it, grad E[score] - distill_coef * grad KL(policy || teacher),
        token-local. In the score before normalisation it would be centred and divided: another algorithm.
    Raises: NumericsError when shapes or dtypes don't fit, or the coefficient is negative or not finite.
    Source: KDRL (2506.02208) Eq 5; Thinking Machines, "On-policy distillation" (2025).
    Differs: as published.
    Tested: test_joint_equals_additive_when_on_policy, test_additive_advantage_gradient_is_reverse_kl
    """
    require_floats(advantages=advantages, policy_logprobs=policy_logprobs)
    reward = -k1_value(policy_logprobs=policy_logprobs, teacher_logprobs=teacher_logprobs)
    return as_float(advantages).detach() + _coefficient(distill_coef) * _kept(reward, keep)


def distill_mask(*, rows: DistillRows, correct: Bool[Tensor, " B"], group_ids: Int[Tensor, " B"]) -> Bool[Tensor, " B"]:
    """Which rollouts the teacher corrects: all, the wrong ones, or those of groups where none is right.

    Args:
        rows: "all" (KDRL), "wrong_responses" (response-level masking), "wrong_groups" (group-level masking).
        correct: [B] the verifier's outcome, never a shaped reward. An abstained rollout counts as not correct.
        group_ids: [B] prompt of each rollout.

    Returns: [B] true where distillation applies.
    Raises: NumericsError when shapes or dtypes don't fit or the mode is unknown.
    Source: KDRL (2506.02208) sec 3.4.
    Tested: test_distill_mask_modes
    """
    require_bool(correct=correct)
    require_integers(group_ids=group_ids)
    require_rows(group_ids, correct, "group_ids", "correct")
    if rows == "all":
        return torch.ones_like(correct)
    if rows == "wrong_responses":
        return ~correct
    if rows != "wrong_groups":
        raise NumericsError(f"rows is '{rows}', but must be all, wrong_responses or wrong_groups")
    return ~torch.isin(group_ids, group_ids[correct])


def _coefficient(value: float) -> float:
    if not 0 <= value < float("inf"):
        raise NumericsError(f"distill_coef is {value}, but must be >= 0 and finite")
    return value


def _kept(values: Tensor, keep: Tensor | None) -> Tensor:
    if keep is None:
        return values
    require_bool(keep=keep)
    require_rows(keep, values, "keep", "policy_logprobs")
    return values.where(keep[:, None], 0.0)
