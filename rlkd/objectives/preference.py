"""Offline learning from right and wrong traces of the same problem."""

from __future__ import annotations

from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn.functional import logsigmoid

from rlkd.errors import NumericsError
from rlkd.tensors.checks import (
    as_float,
    require_axes,
    require_bool,
    require_floating,
    require_floats,
    require_mask,
    require_rows,
)


def redi(
    *,
    policy_logprobs: Float[Tensor, "B T"],
    rejected: Bool[Tensor, " B"],
    rejected_weight: float = 0.8,
    response_mask: Bool[Tensor, "B T"] | None = None,
    reweighting: float = 0.0,
) -> Float[Tensor, "B T"]:
    """Raise right traces, lower wrong ones with a smaller weight: no reference model, no margin.

        loss_t = -policy_logprobs_t (right row)  or  + rejected_weight * policy_logprobs_t (wrong row)
        reduce with kind "sequence" (length-normalised) and denominator = number of PAIRS:
        L = mean over pairs of  -log p(y_w) / |y_w| + rejected_weight * log p(y_l) / |y_l|

    Args:
        policy_logprobs: [B, T] nats. Gradient flows here. Rows of a pair may sit in different micro-batches.
        rejected: [B] true for wrong traces.
        rejected_weight: in [0, 1], the paper's alpha; 0 is SFT, 1 the symmetric objective.
        response_mask: [B, T] trained tokens; needed for reweighting only.
        reweighting: >= 0, gamma: wrong rows are also weighted by exp(gamma * mean log-probability), so that traces
            which are unlikely already are pushed less; 0 switches it off (the default of the paper).

    Returns: [B, T] loss to minimise; unbounded below for wrong rows.
    Gradient: through every log-probability; the reweighting factor is stopped (it is a weight, not a target).
    Raises: NumericsError when weights, shapes or dtypes don't fit.
    Source: REDI (2505.24850) Eq 5; symmetric Eq 4; reweighting as an option of the released code.
    Differs: written a row at a time, so that pairs need not share a batch; equal in sum to the paper's.
    Tested: test_redi_equals_the_papers_pair_form, test_redi_alpha_zero_is_length_normalised_sft,
        test_symmetric_is_the_small_beta_limit_of_dpo, test_reweighting_spares_unlikely_traces
    """
    require_floating(policy_logprobs=policy_logprobs)
    require_axes("B T", policy_logprobs=policy_logprobs)
    require_bool(rejected=rejected)
    require_rows(rejected, policy_logprobs, "rejected", "policy_logprobs")
    if not 0 <= rejected_weight <= 1:
        raise NumericsError(f"rejected_weight is {rejected_weight}, but must be in [0, 1]")
    if not 0 <= reweighting < float("inf"):
        raise NumericsError(f"reweighting is {reweighting}, but must be >= 0 and finite")
    logprobs = as_float(policy_logprobs)
    weight = logprobs.new_full(rejected.shape, -1.0).masked_fill(rejected, rejected_weight)
    if reweighting:
        if response_mask is None:
            raise NumericsError("reweighting needs response_mask, to take a row's mean log-probability")
        mean = sequence_logprobs(policy_logprobs=logprobs, response_mask=response_mask, length_normalised=True)
        factor = (reweighting * mean).exp().detach()  # a weight, never trained
        weight = weight * factor.where(rejected, 1.0)
    return weight[:, None] * logprobs


def sequence_logprobs(
    *, policy_logprobs: Float[Tensor, "B T"], response_mask: Bool[Tensor, "B T"], length_normalised: bool
) -> Float[Tensor, " B"]:
    """Sum (or mean) of each row's trained log-probabilities; 0 for a row without trained tokens.

    Raises: NumericsError when the mask, shapes or dtypes don't fit.
    Tested: test_sequence_logprobs
    """
    require_floating(policy_logprobs=policy_logprobs)
    require_axes("B T", policy_logprobs=policy_logprobs)
    require_mask(response_mask, policy_logprobs, "response_mask", "policy_logprobs")
    total = as_float(policy_logprobs).where(response_mask, 0.0).sum(1)
    return total / response_mask.sum(1).clamp(min=1) if length_normalised else total


def dpo(
    *,
    chosen: Float[Tensor, " P"],
    rejected: Float[Tensor, " P"],
    reference_chosen: Float[Tensor, " P"],
    reference_rejected: Float[Tensor, " P"],
    inverse_temperature: float,
) -> Float[Tensor, " P"]:
    """Direct preference optimisation: logistic loss on the difference of log-ratios to a reference.

        loss = -log sigmoid(b [(chosen - reference_chosen) - (rejected - reference_rejected)])

    Args:
        chosen, rejected: [P] summed log-probabilities under the policy. Gradient flows here.
        reference_chosen, reference_rejected: [P] under the reference. No gradient.
        inverse_temperature: > 0, the paper's beta.

    Returns: [P] loss to minimise, a pair each; divide the sum by the global number of pairs.
    Gradient: b sigmoid(-margin) (grad rejected - grad chosen).
    Raises: NumericsError when shapes, dtypes or the temperature don't fit.
    Source: DPO (2305.18290) Eq 7.
    Differs: as published.
    Tested: test_dpo_by_hand, test_symmetric_is_the_small_beta_limit_of_dpo
    """
    require_floats(
        chosen=chosen, rejected=rejected, reference_chosen=reference_chosen, reference_rejected=reference_rejected
    )
    _check_positive("inverse_temperature", inverse_temperature)
    reference = (as_float(reference_chosen) - as_float(reference_rejected)).detach()  # the reference is never trained
    return -logsigmoid(inverse_temperature * (as_float(chosen) - as_float(rejected) - reference))


def simpo(
    *, chosen: Float[Tensor, " P"], rejected: Float[Tensor, " P"], inverse_temperature: float, margin: float
) -> Float[Tensor, " P"]:
    """Reference-free logistic loss on length-normalised log-probabilities with a target margin.

        loss = -log sigmoid(b (chosen - rejected) - margin)

    Args:
        chosen, rejected: [P] MEAN log-probabilities under the policy (length-normalised). Gradient flows here.
        inverse_temperature: > 0, the paper's beta.
        margin: >= 0, the paper's gamma.

    Returns: [P] loss to minimise, a pair each; divide the sum by the global number of pairs.
    Gradient: b sigmoid(-margin') (grad rejected - grad chosen).
    Raises: NumericsError when shapes, dtypes or settings don't fit.
    Source: SimPO (2405.14734) Eq 6.
    Differs: as published.
    Tested: test_simpo_by_hand
    """
    require_floats(chosen=chosen, rejected=rejected)
    _check_positive("inverse_temperature", inverse_temperature)
    if not 0 <= margin < float("inf"):
        raise NumericsError(f"margin is {margin}, but must be >= 0 and finite")
    return -logsigmoid(inverse_temperature * (as_float(chosen) - as_float(rejected)) - margin)


def _check_positive(name: str, value: float) -> None:
    if not 0 < value < float("inf"):
        raise NumericsError(f"{name} is {value}, but must be positive and finite")
