"""Refusals that every objective shares: nothing broadcasts, nothing is cut, nothing is computed in half precision."""

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


def require_mask(mask: Tensor, values: Tensor, name: str = "mask") -> None:
    """Refuse a mask that is not boolean or does not fit. Raises: NumericsError."""
    if mask.dtype != torch.bool:
        raise NumericsError(f"{name} is {mask.dtype}, but must be torch.bool; write `{name} != 0`")
    require_same_shape(values=values, **{name: mask})


def require_rows(rows: Tensor, values: Tensor, name: str) -> None:
    """Refuse per-row data that does not fit the rows of ``values``. Raises: NumericsError."""
    if rows.shape != values.shape[:1]:
        raise NumericsError(f"{name} is {list(rows.shape)} but must have one entry a row: {list(values.shape[:1])}")
