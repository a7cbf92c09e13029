"""Whatever has no chunked form of its own, a few rows at a time: equal to the plain form on the whole vocabulary."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from divergence_cases import logits
from ledger import prove
from torch import Tensor

from rlkd.divergences import (
    boundary_logmass,
    forward_kl,
    jensen_shannon,
    log_cosh_matching,
    mix_teachers,
    plackett_luce,
    standardise_to_teacher,
)
from rlkd.errors import NumericsError
from rlkd.tensors import TeacherHead, chunked_rows

FAMILY = "row by row"
N, D, V = 7, 4, 9
STARTS = torch.arange(V) % 3 == 0
SHARES = torch.tensor([0.25, 0.75], dtype=torch.float64)


def boundary(policy: Tensor, _first: Tensor, _second: Tensor, _gold: Tensor) -> Tensor:
    return boundary_logmass(policy, STARTS)


def committee(policy: Tensor, first: Tensor, second: Tensor, _gold: Tensor) -> Tensor:
    teacher = mix_teachers(torch.stack([first, second]), weights=SHARES.to(first.dtype))
    return jensen_shannon(policy_logits=policy, teacher_logits=teacher)


def standardised(policy: Tensor, first: Tensor, _second: Tensor, _gold: Tensor) -> Tensor:
    return forward_kl(policy_logits=standardise_to_teacher(policy, first), teacher_logits=first)


def ranked(policy: Tensor, first: Tensor, _second: Tensor, gold: Tensor) -> Tensor:
    return plackett_luce(policy_logits=policy, teacher_logits=first, first=gold)


def matched(policy: Tensor, _first: Tensor, second: Tensor, _gold: Tensor) -> Tensor:
    return log_cosh_matching(auxiliary_logits=policy, teacher_logits=second)


def both(policy: Tensor, first: Tensor, second: Tensor, gold: Tensor) -> Tensor:
    """More than one number a row."""
    return torch.stack([ranked(policy, first, second, gold), matched(policy, first, second, gold)], 1)


FUNCTIONS = [boundary, committee, standardised, ranked, matched, both]


def problem(dtype: torch.dtype = torch.float64) -> dict[str, Any]:
    return {
        "hidden": logits(0, N, D).to(dtype).requires_grad_(),
        "head_weight": logits(1, V, D).to(dtype).requires_grad_(),
        "head_bias": logits(2, V).to(dtype).requires_grad_(),
        "teachers": [
            TeacherHead(logits(3, N, D).to(dtype), logits(4, V, D).to(dtype)),
            TeacherHead(logits(5, N, 3).to(dtype), logits(6, V, 3).to(dtype), logits(7, V).to(dtype)),
        ],
        "extras": [torch.arange(N)],
    }


def plain(function: Callable[..., Tensor], inputs: dict[str, Any], temperature: float) -> Tensor:
    taught = [(t.hidden @ t.weight.T + (0 if t.bias is None else t.bias)) / temperature for t in inputs["teachers"]]
    own = (inputs["hidden"] @ inputs["head_weight"].T + inputs["head_bias"]) / temperature
    return function(own, *taught, *inputs["extras"])


@pytest.mark.parametrize("function", FUNCTIONS)
@pytest.mark.parametrize("chunk_size", [1, 3, None])
def test_anything_row_by_row_equals_plain(function: Callable[..., Tensor], chunk_size: int | None) -> None:
    inputs = problem()
    trained = [inputs[name] for name in ("hidden", "head_weight", "head_bias")]
    got = chunked_rows(function, **inputs, temperature=1.3, chunk_size=chunk_size)
    want = plain(function, inputs, 1.3)
    prove(FAMILY, function.__name__, got, want, 1e-12)
    upstream = torch.linspace(-1, 2, got.numel(), dtype=torch.float64).reshape(got.shape)
    slopes = [torch.autograd.grad((values * upstream).sum(), trained) for values in (got, want)]
    for name, first, second in zip(("hidden", "head", "bias"), *slopes, strict=True):
        prove(FAMILY, f"{function.__name__}, d {name}", first, second, 1e-12)


@pytest.mark.parametrize("function", FUNCTIONS)
def test_float32_rounding_is_all_that_chunks_change(function: Callable[..., Tensor]) -> None:
    got = chunked_rows(function, **problem(torch.float32), chunk_size=2)
    assert got.dtype == torch.float32
    prove("float32", f"row by row, {function.__name__}", got, plain(function, problem(torch.float32), 1.0), 1e-5)


def test_bfloat16_rounds_only_the_products() -> None:
    inputs = problem(torch.bfloat16) | {"head_bias": None}
    inputs["teachers"] = [teacher._replace(bias=None) for teacher in inputs["teachers"]]
    own = (inputs["hidden"] @ inputs["head_weight"].T).double()
    first, second = ((teacher.hidden @ teacher.weight.T).double() for teacher in inputs["teachers"])
    got = chunked_rows(committee, **inputs, chunk_size=2)
    assert got.dtype == torch.float32
    want = committee(own, first, second, torch.arange(N))
    prove("float32", "row by row, bfloat16 input", got.double(), want, 1e-5)


def test_chunked_rows_gradcheck() -> None:
    inputs = problem()

    def function(hidden: Tensor, head_weight: Tensor, head_bias: Tensor) -> Tensor:
        changed = inputs | {"hidden": hidden, "head_weight": head_weight, "head_bias": head_bias}
        return chunked_rows(committee, **changed, chunk_size=2)

    assert torch.autograd.gradcheck(function, (inputs["hidden"], inputs["head_weight"], inputs["head_bias"]))


def test_masked_rows_may_hold_nan() -> None:
    keep = torch.arange(N) != 3
    slopes = []
    for junk in (0.0, math.nan):
        inputs = problem()
        inputs["hidden"] = inputs["hidden"].detach().masked_fill(~keep[:, None], junk).requires_grad_()
        values = chunked_rows(committee, **inputs, chunk_size=2).where(keep, 0.0)
        slopes.append(torch.autograd.grad(values.sum(), [inputs["hidden"], inputs["head_weight"]]))
    torch.testing.assert_close(slopes[0], slopes[1], rtol=0, atol=1e-14)


def test_the_vocabulary_is_never_held_for_all_rows() -> None:
    """Neither going forward nor back does the function see more rows than a chunk holds."""
    seen = []

    def spy(policy: Tensor, first: Tensor, second: Tensor, gold: Tensor) -> Tensor:
        seen.append(len(policy))
        return committee(policy, first, second, gold)

    chunked_rows(spy, **problem(), chunk_size=3).sum().backward()  # type: ignore[no-untyped-call]
    assert seen == [3, 3, 1, 3, 3, 1]


def test_no_rows_are_no_problem() -> None:
    inputs = problem()
    inputs["hidden"] = torch.zeros(0, D, dtype=torch.float64, requires_grad=True)
    inputs["teachers"] = [t._replace(hidden=t.hidden[:0]) for t in inputs["teachers"]]
    inputs["extras"] = [torch.arange(0)]
    values = chunked_rows(both, **inputs)
    values.sum().backward()  # type: ignore[no-untyped-call]
    assert values.shape == (0, 2)
    assert inputs["hidden"].grad.shape == (0, D)


@pytest.mark.usefixtures("unchecked")
def test_rows_must_be_kept() -> None:
    with pytest.raises(NumericsError, match="must keep the rows"):
        chunked_rows(lambda policy, *_: policy.sum(), **problem())
    with pytest.raises(NumericsError, match=r"\[7, 6, 7, 7\] rows"):
        inputs = problem()
        inputs["teachers"][0] = inputs["teachers"][0]._replace(hidden=logits(0, 6, D))
        chunked_rows(committee, **inputs)
