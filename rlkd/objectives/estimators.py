"""Sampled KL estimators, each named by the gradient that it gives as a loss."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from rlkd.errors import NumericsError, did_you_mean
from rlkd.objectives.policy_gradient import LOG_RATIO_BOUND
from rlkd.tensors.checks import as_float, require_floats


def k1_value(*, policy_logprobs: Float[Tensor, "B T"], teacher_logprobs: Float[Tensor, "B T"]) -> Float[Tensor, "B T"]:
    """Log-ratio of sampled tokens, an unbiased value of reverse KL; detached, because as a loss it trains nothing.

        k1_t = policy_logprobs_t - teacher_logprobs_t

    Args:
        policy_logprobs: [B, T] nats, of tokens sampled from the policy itself. No gradient.
        teacher_logprobs: [B, T] nats, of the same tokens. No gradient.

    Returns: [B, T] nats, of either sign; E[k1_t] = KL(policy || teacher) at the sampled prefix.
    Gradient: none. Through the log-ratio it would be E[grad log policy] = 0, whatever the teacher says.
    Raises: NumericsError when shapes or dtypes don't fit.
    Source: Schulman, "Approximating KL divergence".
    Tested: test_value_is_reverse_kl, test_k1_as_a_loss_has_no_gradient
    """
    require_floats(policy_logprobs=policy_logprobs, teacher_logprobs=teacher_logprobs)
    return (as_float(policy_logprobs) - as_float(teacher_logprobs)).detach()  # a value, refused as a loss


def reverse_kl_k2(
    *, policy_logprobs: Float[Tensor, "B T"], teacher_logprobs: Float[Tensor, "B T"]
) -> Float[Tensor, "B T"]:
    """Half the squared log-ratio of tokens that the policy sampled: as a loss it has the reverse-KL gradient.

        k2_t = (policy_logprobs_t - teacher_logprobs_t)^2 / 2

    Args:
        policy_logprobs: [B, T] nats, of tokens sampled from the policy itself. Gradient flows here.
        teacher_logprobs: [B, T] nats, of the same tokens. No gradient.

    Returns: [B, T] nats, >= 0. Biased as a value.
    Gradient: E[grad k2_t] = grad KL(policy || teacher) at the sampled prefix, exactly; a token gets no credit for the
        KL of later tokens (see advantages.reward_to_go for that).
    Raises: NumericsError when shapes or dtypes don't fit.
    Source: Schulman, "Approximating KL divergence"; KDRL (2506.02208) joint loss, App. A.3.
    Differs: as published.
    Tested: test_k2_gradient_is_reverse_kl, test_k2_is_token_local, test_teacher_swap_changes_the_gradient
    """
    require_floats(policy_logprobs=policy_logprobs, teacher_logprobs=teacher_logprobs)
    teacher = as_float(teacher_logprobs).detach()  # the teacher is data, never trained
    return (as_float(policy_logprobs) - teacher).square() / 2


def forward_kl_k3(
    *, policy_logprobs: Float[Tensor, "B T"], teacher_logprobs: Float[Tensor, "B T"]
) -> Float[Tensor, "B T"]:
    """Schulman's k3 of tokens that the policy sampled: reverse KL as a value, the FORWARD-KL gradient as a loss.

        R_t  = teacher_logprobs_t - policy_logprobs_t
        k3_t = exp(R_t) - R_t - 1

    Args:
        policy_logprobs: [B, T] nats, of tokens sampled from the policy itself. Gradient flows here.
        teacher_logprobs: [B, T] nats, of the same tokens. No gradient.

    Returns: [B, T] nats, >= 0; E[k3_t] = KL(policy || teacher) at the sampled prefix.
    Gradient: E[grad k3_t] = grad KL(teacher || policy). R is bounded to +-20, outside it the gradient is zero.
    Raises: NumericsError when shapes or dtypes don't fit.
    Source: Schulman, "Approximating KL divergence"; GRPO's reference penalty (2402.03300) Eq 4.
    Differs: R bounded to +-20 so that exp cannot overflow.
    Tested: test_value_is_reverse_kl, test_k3_gradient_is_forward_kl, test_teacher_swap_changes_the_gradient
    """
    require_floats(policy_logprobs=policy_logprobs, teacher_logprobs=teacher_logprobs)
    teacher = as_float(teacher_logprobs).detach()  # the teacher is data, never trained
    difference = (teacher - as_float(policy_logprobs)).clamp(-LOG_RATIO_BOUND, LOG_RATIO_BOUND)
    return difference.expm1() - difference


@dataclass(frozen=True)
class Estimator:
    """One sampled KL estimator: what it estimates, and what it trains."""

    value: str
    gradient: str
    loss: Callable[..., Tensor] | None
    aliases: tuple[str, ...] = ()


ESTIMATORS = {
    "k1": Estimator("reverse KL, unbiased, either sign", "zero: the teacher drops out", None, ("kl", "log_ratio")),
    "k2": Estimator("biased", "reverse KL, exact", reverse_kl_k2, ("reverse_kl_k2", "mse")),
    "k3": Estimator("reverse KL, unbiased, >= 0", "forward KL, exact", forward_kl_k3, ("forward_kl_k3", "low_var_kl")),
}


def loss_estimator(name: str) -> Callable[..., Tensor]:
    """The per-token loss behind an estimator's name or alias.

    Raises: NumericsError for k1 under any of its names, since its gradient is zero whatever the teacher says, and for
        an unknown name.
    Tested: test_k1_is_refused_as_a_loss_under_every_name
    """
    key = name.strip().lower()
    for known, estimator in ESTIMATORS.items():
        if key != known and key not in estimator.aliases:
            continue
        if estimator.loss is None:
            raise NumericsError(
                f"'{name}' (k1) cannot be a loss: its expected gradient is zero, the teacher drops out of it. Write k2 "
                "for the reverse-KL gradient, k3 for the forward-KL gradient, or use the log-ratio as an advantage "
                "(additive_advantage)"
            )
        return estimator.loss
    names = [*ESTIMATORS, *(alias for e in ESTIMATORS.values() for alias in e.aliases)]
    raise NumericsError(f"unknown KL estimator '{name}'{did_you_mean(key, names)}; write k2 or k3")
