"""Reductions: the same number and gradient however the rows are batched, packed, padded, ordered or spread."""

from __future__ import annotations

import math

import pytest
import torch
from ledger import prove
from torch import Tensor

from rlkd.errors import NumericsError
from rlkd.objectives import Reduction, local_denominator, reduce

KINDS: list[Reduction] = ["token", "sequence", "constant"]
LENGTHS = [3, 1, 4, 2]


def batch() -> tuple[Tensor, Tensor]:
    mask = torch.arange(5)[None, :] < torch.tensor(LENGTHS)[:, None]
    values = torch.arange(20, dtype=torch.float64).reshape(4, 5).sin()
    return values, mask


def budget(kind: Reduction) -> int | None:
    return 5 if kind == "constant" else None


def whole(kind: Reduction) -> float:
    values, _ = batch()
    rows = [values[i, :n] for i, n in enumerate(LENGTHS)]
    if kind == "token":
        return float(torch.cat(rows).mean())
    if kind == "sequence":
        return float(torch.stack([row.mean() for row in rows]).mean())
    return float(torch.cat(rows).sum() / (4 * 5))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [1, 2, 3, 4])
def test_reduction_is_split_invariant(kind: Reduction, size: int) -> None:
    """Micro-batches and ranks of any size: local denominators add up, so do the losses."""
    values, mask = batch()
    parts = list(zip(values.split(size), mask.split(size), strict=True))
    denominator = sum(local_denominator(m, kind=kind, constant_length=budget(kind)) for _, m in parts)
    total = torch.stack([reduce(v, m, kind=kind, denominator=denominator) for v, m in parts]).sum(0, keepdim=True)
    prove("reduction", f"{kind}, micro-batches", total, torch.tensor([whole(kind)], dtype=torch.float64))


@pytest.mark.parametrize("kind", KINDS)
def test_reduction_is_packing_invariant(kind: Reduction) -> None:
    """Two sequences a row, the second with other sequences' tokens beside it."""
    values, mask = batch()
    ids = torch.arange(4)[:, None].expand_as(mask)
    packed_values, packed_mask, packed_ids = (t.reshape(2, 10) for t in (values, mask, ids))
    denominator = local_denominator(
        packed_mask, kind=kind, constant_length=budget(kind), sequence_ids=packed_ids.contiguous()
    )
    result = reduce(packed_values, packed_mask, kind=kind, denominator=denominator, sequence_ids=packed_ids)
    prove("reduction", f"{kind}, packed", result[None], torch.tensor([whole(kind)], dtype=torch.float64))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("junk", [0.0, 1e30, math.nan, -math.inf])
def test_reduction_ignores_padding(kind: Reduction, junk: float) -> None:
    values, mask = batch()
    padded = values.where(mask, junk).requires_grad_()
    result = reduce(
        padded, mask, kind=kind, denominator=local_denominator(mask, kind=kind, constant_length=budget(kind))
    )
    result.backward()
    assert float(result.detach()) == pytest.approx(whole(kind), abs=1e-14)
    assert padded.grad is not None
    assert padded.grad[~mask].abs().sum() == 0
    expected = {"token": 1 / 10, "sequence": 1 / (4 * 3), "constant": 1 / 20}[kind]
    assert padded.grad[0, 0].item() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_row_order_does_not_matter(kind: Reduction) -> None:
    values, mask = batch()
    order = torch.tensor([2, 0, 3, 1])
    denominator = local_denominator(mask[order], kind=kind, constant_length=budget(kind))
    result = reduce(values[order], mask[order], kind=kind, denominator=denominator)
    prove("reduction", f"{kind}, row order", result[None], torch.tensor([whole(kind)], dtype=torch.float64))


@pytest.mark.parametrize("kind", KINDS)
def test_rows_without_trained_tokens_count_for_nothing(kind: Reduction) -> None:
    values, mask = batch()
    values, mask = torch.cat([values, values[:1]]), torch.cat([mask, torch.zeros_like(mask[:1])])
    denominator = local_denominator(mask, kind=kind, constant_length=budget(kind))
    assert float(reduce(values, mask, kind=kind, denominator=denominator)) == pytest.approx(whole(kind), abs=1e-14)


@pytest.mark.parametrize("kind", KINDS)
def test_an_empty_batch_gives_zero(kind: Reduction) -> None:
    values = torch.full((2, 3), math.nan, requires_grad=True)
    empty = torch.zeros(2, 3, dtype=torch.bool)
    denominator = local_denominator(empty, kind=kind, constant_length=budget(kind))
    result = reduce(values, empty, kind=kind, denominator=denominator)
    result.backward()
    assert result.item() == 0.0
    assert values.grad is not None
    assert values.grad.abs().sum() == 0


@pytest.mark.usefixtures("unchecked")
def test_bad_reductions_are_refused() -> None:
    values, mask = batch()
    with pytest.raises(NumericsError, match="denominator"):
        reduce(values, mask, kind="token", denominator=0.0)
    with pytest.raises(NumericsError, match="kind"):
        reduce(values, mask, kind="mean", denominator=1.0)  # type: ignore[arg-type]
    with pytest.raises(NumericsError, match="constant_length"):
        local_denominator(mask, kind="constant")
    with pytest.raises(NumericsError, match="constant_length"):
        local_denominator(mask, kind="token", constant_length=4)
    with pytest.raises(NumericsError, match="same shape"):
        reduce(values[:, :4], mask, kind="token", denominator=1.0)
    with pytest.raises(NumericsError, match="same shape"):
        reduce(values, mask, kind="sequence", denominator=1.0, sequence_ids=torch.arange(4))
