"""From per-token losses to one scalar, with denominators that know nothing of batching, packing or ranks."""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from rlkd.errors import NumericsError
from rlkd.tensors.checks import (
    require_axes,
    require_bool,
    require_floating,
    require_integers,
    require_mask,
    require_same_shape,
)
from rlkd.tensors.masked import checked_denominator, masked_sum, select

Reduction = Literal["token", "sequence", "constant"]


def local_denominator(
    mask: Bool[Tensor, "B T"],
    *,
    kind: Reduction,
    constant_length: int | None = None,
    sequence_ids: Int[Tensor, "B T"] | None = None,
) -> Float[Tensor, ""]:
    """This micro-batch's share of the denominator; sum it over micro-batches and ranks, then pass it to ``reduce``.

        token: trained tokens;  sequence: sequences that have one;  constant: constant_length * such sequences

    Args:
        mask: [B, T] trained tokens.
        kind: as in reduce.
        constant_length: the fixed length of "constant" (Dr.GRPO: the generation budget); refused elsewhere.
        sequence_ids: [B, T] which sequence a token belongs to, for packed rows; default: a row is a sequence.

    Returns: float64 scalar.
    Raises: NumericsError for a mask or ids that don't fit, an unknown kind, or a constant length that is missing or
        out of place.
    Tested: test_reduction_is_split_invariant, test_reduction_is_packing_invariant
    """
    _check_kind(kind)
    require_bool(mask=mask)
    require_axes("B T", mask=mask)
    if (constant_length is not None) != (kind == "constant") or (constant_length is not None and constant_length < 1):
        raise NumericsError(
            f"constant_length is {constant_length} with kind '{kind}'; give it, >= 1, with 'constant' only"
        )
    if kind == "token":
        return mask.sum().double()
    sequences = float(_sequences(mask, sequence_ids)[mask].unique().numel())
    return mask.new_tensor(sequences * (constant_length or 1), dtype=torch.float64)


def reduce(
    per_token: Float[Tensor, "B T"],
    mask: Bool[Tensor, "B T"],
    *,
    kind: Reduction,
    denominator: Tensor | float,
    sequence_ids: Int[Tensor, "B T"] | None = None,
) -> Float[Tensor, ""]:
    """Sum of a per-token loss over a global denominator: add up the results of all micro-batches and ranks.

        token:    sum_{b,t} loss_bt / denominator              denominator: trained tokens (DAPO)
        sequence: sum_b (mean_t loss_bt) / denominator         denominator: sequences (GRPO, GSPO)
        constant: sum_{b,t} loss_bt / denominator              denominator: sequences * fixed length (Dr.GRPO)

    Args:
        per_token: [B, T] loss. Gradient flows here.
        mask: [B, T] trained tokens; anything, NaN included, may stand elsewhere.
        kind: which mean.
        denominator: the sum of local_denominator over everything that makes one optimizer step.
        sequence_ids: [B, T] which sequence a token belongs to, for packed rows; default: a row is a sequence. A
            sequence must not be split over calls.

    Returns: scalar; 0 for an empty mask.
    Gradient: each trained token's weight is 1 / denominator, or 1 / (its sequence's tokens * denominator).
    Raises: NumericsError for shapes, kinds or denominators that don't fit.
    Source: GRPO (2402.03300), DAPO (2503.14476) Eq 8, Dr.GRPO (2503.20783).
    Differs: the denominator is global; published code divides by that of each micro-batch.
    Tested: test_reduction_is_split_invariant, test_reduction_is_packing_invariant, test_reduction_ignores_padding
    """
    _check_kind(kind)
    require_floating(per_token=per_token)
    require_axes("B T", per_token=per_token)
    require_mask(mask, per_token, "mask", "per_token")
    number = checked_denominator(denominator, is_empty=not bool(mask.any()))
    if kind != "sequence":
        return masked_sum(per_token, mask) / number
    sequences = _sequences(mask, sequence_ids)
    _, places = sequences.unique(return_inverse=True)
    counts = torch.bincount(places.flatten(), weights=mask.flatten().double())
    weights = (1 / counts.clamp(min=1))[places].to(select(per_token, mask).dtype)
    return masked_sum(select(per_token, mask) * weights, mask) / number


def _sequences(mask: Tensor, sequence_ids: Tensor | None) -> Tensor:
    if sequence_ids is None:
        return torch.arange(mask.shape[0], device=mask.device)[:, None].expand_as(mask)
    require_same_shape(mask=mask, sequence_ids=sequence_ids)
    require_integers(sequence_ids=sequence_ids)
    return sequence_ids


def _check_kind(kind: str) -> None:
    if kind not in ("token", "sequence", "constant"):
        raise NumericsError(f"kind is '{kind}', but must be token, sequence or constant")
