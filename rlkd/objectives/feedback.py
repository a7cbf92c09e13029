"""RLTF: learning from text feedback that is not there at test time."""

from __future__ import annotations

import math

from jaxtyping import Float
from torch import Tensor

from rlkd.errors import NumericsError
from rlkd.objectives.policy_gradient import reinforce
from rlkd.tensors.checks import as_float


def rltf_self_distillation(
    *,
    policy_logprobs: Float[Tensor, "B T"],
    advantages: Float[Tensor, "B T"],
    logprob_floor: float = -math.inf,
) -> Float[Tensor, "B T"]:
    """Credit the revised answer's tokens as if they had been written without the critique: RLTF-SD.

        loss_t = -A_t log p(y1_t | bare prompt)   where log p >= logprob_floor, else 0

    Args:
        policy_logprobs: [B, T] nats, of the REVISED answer's tokens given the bare prompt. Gradient flows here.
        advantages: [B, T] from first_turn_advantages (revised score minus mean first score). No gradient.
        logprob_floor: nats; tokens less likely than this are left out (released code: -5; the paper: none).

    Returns: [B, T] loss to minimise, to be weighted by c_SD (0.1) and added to the policy-gradient loss.
    Gradient: A_t grad log p(y1_t | x0), without importance ratio: biased for the single-turn objective as the samples
        come from the critique's context (the unbiased weight p(y1|x0) / p(y1|x1) has unusable variance).
    Raises: NumericsError when shapes or dtypes don't fit, or the floor is above 0. NaN stays NaN.
    Source: RLTF (2602.02482) Eq 3 with pi_ref = pi(.|x0), Eq 7, Alg 1; the floor from released code.
    Differs: as published (floor off).
    Tested: test_rltf_sd_bias_is_the_missing_ratio, test_rltf_sd_floor, test_rltf_sd_floor_does_not_hide_nan
    """
    if math.isnan(logprob_floor) or logprob_floor > 0:
        raise NumericsError(f"logprob_floor is {logprob_floor}, but must be at most 0 (log-probabilities are)")
    loss = reinforce(policy_logprobs=policy_logprobs, advantages=advantages)
    return loss.masked_fill(as_float(policy_logprobs) < logprob_floor, 0.0)  # NaN is no unlikely token: it stays
