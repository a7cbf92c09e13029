"""Masked reductions. A masked slot is selected away, never multiplied away: 0 * NaN is NaN."""

from __future__ import annotations

from jaxtyping import Bool, Float
from torch import Tensor

from rlkd.errors import NumericsError
from rlkd.tensors.checks import as_float, require_mask


def select(values: Float[Tensor, "*S"], mask: Bool[Tensor, "*S"], fill: float = 0.0) -> Float[Tensor, "*S"]:
    """``values`` where the mask is true, ``fill`` elsewhere, in float32 or better.

    Apply it to everything that enters a per-token objective: what stands in a masked slot (padding, NaN, inf) then
    reaches neither the loss nor its gradient.

    Gradient: flows where the mask is true; exactly zero elsewhere, even where the value is NaN.
    Raises: NumericsError when the mask is not boolean or has another shape.
    Tested: test_select_hides_nan_in_forward_and_backward
    """
    require_mask(mask, values)
    return as_float(values).where(mask, fill)


def masked_sum(values: Float[Tensor, "*S"], mask: Bool[Tensor, "*S"]) -> Float[Tensor, ""]:
    """Sum of the values where the mask is true; 0 (with a gradient of 0) for an empty mask.

    Raises: NumericsError when the mask is not boolean or has another shape.
    Tested: test_masked_sum_ignores_masked_slots, test_empty_mask_is_zero
    """
    return select(values, mask).sum()


def masked_mean(
    values: Float[Tensor, "*S"], mask: Bool[Tensor, "*S"], denominator: Tensor | float | None = None
) -> Float[Tensor, ""]:
    """Masked sum over ``denominator``, or over the mask's own count when none is given.

    Losses pass the global denominator (all micro-batches, all ranks); the local count is for statistics only, since a
    mean of local means depends on how the batch was split. An empty mask gives 0.

    Raises: NumericsError when the denominator is negative, not finite, or zero for a mask that is not empty.
    Tested: test_masked_mean_with_global_denominator_is_split_invariant, test_empty_mask_is_zero
    """
    total = masked_sum(values, mask)
    count = mask.sum()
    if denominator is None:
        return total / count.clamp(min=1)
    return total / checked_denominator(denominator, is_empty=not bool(count))


def checked_denominator(denominator: Tensor | float, *, is_empty: bool) -> float:
    """The denominator as a number that can be divided by; 0 becomes 1 when there is nothing to divide.

    Raises: NumericsError when it is negative, not finite, or zero while something is being averaged.
    """
    number = float(denominator)
    if is_empty and number == 0:
        return 1.0
    if not 0 < number < float("inf"):
        raise NumericsError(
            f"denominator is {number}, but must be positive and finite: the global count being averaged"
        )
    return number
