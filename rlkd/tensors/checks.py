"""Refusals that every objective shares: nothing broadcasts, nothing is cut, nothing is computed in half precision.

They look at shapes and dtypes only, which costs nothing. Values are looked at where that needs no wait for the device,
or where the function's own work waits for it anyway; everywhere else what is not finite stays visible in the result.
"""

from __future__ import annotations

import torch
from torch import Tensor

from rlkd.errors import NumericsError


def as_float(values: Tensor) -> Tensor:
    """The same values in float32, or in float64 when they came in float64."""
    return values if values.dtype in (torch.float32, torch.float64) else values.float()


def require_same_shape(**tensors: Tensor | None) -> None:
    """Refuse tensors that would broadcast. Raises: NumericsError that names both tensors and their shapes."""
    given = [(name, tensor.shape) for name, tensor in tensors.items() if tensor is not None]
    for name, shape in given[1:]:
        if shape != given[0][1]:
            raise NumericsError(
                f"{name} is {list(shape)} but {given[0][0]} is {list(given[0][1])}; both must have the same shape"
            )


def require_floating(**tensors: Tensor | None) -> None:
    """Refuse numbers that are not floating point: token ids, counts, masks. Raises: NumericsError."""
    for name, tensor in tensors.items():
        if tensor is not None and not tensor.is_floating_point():
            raise NumericsError(f"{name} is {tensor.dtype}, but must be floating point; write `{name}.float()`")


def require_floats(**tensors: Tensor | None) -> None:
    """Refuse what is not floating point, and what would broadcast. Raises: NumericsError."""
    require_floating(**tensors)
    require_same_shape(**tensors)


def require_axes(axes: str, **tensors: Tensor) -> None:
    """Refuse tensors with more or fewer axes than ``axes`` ("B T") names. Raises: NumericsError."""
    for name, tensor in tensors.items():
        if tensor.ndim != len(axes.split()):
            raise NumericsError(f"{name} is {list(tensor.shape)}, but must be [{', '.join(axes.split())}]")


def require_bool(**masks: Tensor | None) -> None:
    """Refuse masks of numbers, whose negation or sum would mean something else. Raises: NumericsError."""
    for name, mask in masks.items():
        if mask is not None and mask.dtype != torch.bool:
            raise NumericsError(f"{name} is {mask.dtype}, but must be torch.bool; write `{name} != 0`")


def require_integers(**ids: Tensor | None) -> None:
    """Refuse ids that are not whole numbers. Raises: NumericsError."""
    for name, tensor in ids.items():
        if tensor is not None and (tensor.is_floating_point() or tensor.is_complex() or tensor.dtype == torch.bool):
            raise NumericsError(f"{name} is {tensor.dtype}, but must be integers")


def require_mask(mask: Tensor, values: Tensor, name: str = "mask", of: str = "values") -> None:
    """Refuse a mask that is not boolean or does not fit; ``name`` and ``of`` are what the caller calls both.

    Raises: NumericsError.
    """
    require_bool(**{name: mask})
    require_same_shape(**{of: values, name: mask})


def require_rows(rows: Tensor, values: Tensor, name: str, of: str) -> None:
    """Refuse per-row data that does not fit the rows of ``values``, called ``of``. Raises: NumericsError."""
    if rows.shape != values.shape[:1]:
        raise NumericsError(
            f"{name} is {list(rows.shape)} but must have one entry a row of {of}: {list(values.shape[:1])}"
        )
