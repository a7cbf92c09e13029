"""Masked reductions and chunked log-probabilities."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from ledger import prove
from torch import Tensor

from rlkd.errors import NumericsError
from rlkd.tensors import chunked_logprobs, masked_mean, masked_sum, select
from rlkd.tensors.chunked import Slopes


def head_problem(
    dtype: torch.dtype = torch.float64, rows: int = 7, width: int = 5, vocabulary: int = 11
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(rows, width, generator=generator, dtype=torch.float64)
    weight = torch.randn(vocabulary, width, generator=generator, dtype=torch.float64)
    bias = torch.randn(vocabulary, generator=generator, dtype=torch.float64)
    targets = torch.randint(vocabulary, (rows,), generator=generator)
    return hidden.to(dtype), weight.to(dtype), bias.to(dtype), targets


def test_select_hides_nan_in_forward_and_backward() -> None:
    values = torch.tensor([1.0, math.nan, math.inf], requires_grad=True)
    mask = torch.tensor([True, False, False])
    selected = select(values, mask)
    (selected.exp().sum() * 2).backward()
    assert selected.tolist() == [1.0, 0.0, 0.0]
    assert values.grad is not None
    assert values.grad.tolist() == pytest.approx([2 * math.e, 0.0, 0.0])


def test_masked_sum_ignores_masked_slots() -> None:
    values = torch.tensor([[1.0, -math.inf], [math.nan, 4.0]])
    assert masked_sum(values, torch.tensor([[True, False], [False, True]])).item() == 5.0


def test_half_precision_is_summed_in_float32() -> None:
    values = torch.full((4096,), 1.0, dtype=torch.bfloat16)
    assert masked_sum(values, torch.ones(4096, dtype=torch.bool)).item() == 4096.0
    assert masked_sum(values, torch.ones(4096, dtype=torch.bool)).dtype == torch.float32


def test_masked_mean_with_global_denominator_is_split_invariant() -> None:
    values, mask = torch.arange(6.0), torch.tensor([True, True, True, True, False, True])
    whole = masked_mean(values, mask)
    parts = sum(masked_mean(v, m, denominator=5) for v, m in zip(values.split(4), mask.split(4), strict=True))
    assert whole.item() == pytest.approx(11 / 5)
    assert parts == pytest.approx(11 / 5)


def test_empty_mask_is_zero() -> None:
    values = torch.tensor([math.nan, 1.0], requires_grad=True)
    empty = torch.zeros(2, dtype=torch.bool)
    for result in (masked_sum(values, empty), masked_mean(values, empty), masked_mean(values, empty, denominator=0)):
        assert result.item() == 0.0
        assert torch.autograd.grad(result, values)[0].tolist() == [0.0, 0.0]


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("denominator", [0.0, -1.0, math.nan, math.inf])
def test_bad_denominators_are_refused(denominator: float) -> None:
    with pytest.raises(NumericsError, match="denominator"):
        masked_mean(torch.ones(2), torch.ones(2, dtype=torch.bool), denominator)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("mask", [torch.ones(3), torch.ones(1, 3, dtype=torch.bool), torch.ones(1, dtype=torch.bool)])
def test_masks_that_do_not_fit_are_refused(mask: Tensor) -> None:
    with pytest.raises(NumericsError, match="mask"):
        masked_sum(torch.ones(3), mask)


@pytest.mark.usefixtures("kept")
@pytest.mark.parametrize("chunk_size", [1, 3, 7, 100, None])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_chunked_logprobs_equal_plain(chunk_size: int | None, temperature: float) -> None:
    hidden, weight, bias, targets = head_problem()
    inputs = [tensor.requires_grad_() for tensor in (hidden, weight, bias)]
    upstream = torch.linspace(-1, 2, 7, dtype=torch.float64)
    expected = ((hidden @ weight.T + bias) / temperature).log_softmax(1)
    chosen = expected.gather(1, targets[:, None]).squeeze(1)
    output = chunked_logprobs(
        hidden=hidden,
        head_weight=weight,
        head_bias=bias,
        targets=targets,
        temperature=temperature,
        chunk_size=chunk_size,
        with_entropy=True,
    )
    assert output.entropy is not None
    prove("tensors", "chunked_logprobs", output.logprobs, chosen, 1e-12)
    prove("tensors", "chunked_logprobs, entropy", output.entropy, -(expected.exp() * expected).sum(1), 1e-12)
    assert not output.entropy.requires_grad
    got = torch.autograd.grad(output.logprobs @ upstream, inputs)
    want = torch.autograd.grad(chosen @ upstream, inputs)
    for name, first, second in zip(("hidden", "head", "bias"), got, want, strict=True):
        prove("tensors", f"chunked_logprobs, d {name}", first, second, 1e-12)


@pytest.mark.usefixtures("kept")
def test_chunked_logprobs_gradcheck() -> None:
    hidden, weight, bias, targets = head_problem()

    def function(hidden: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return chunked_logprobs(
            hidden=hidden, head_weight=weight, head_bias=bias, targets=targets, temperature=1.3, chunk_size=2
        ).logprobs

    assert torch.autograd.gradcheck(function, [t.requires_grad_() for t in (hidden, weight, bias)])


@pytest.mark.parametrize("frozen", ["hidden", "head_weight"])
def test_chunked_logprobs_with_one_side_frozen(frozen: str) -> None:
    hidden, weight, _, targets = head_problem()
    trained = (weight if frozen == "hidden" else hidden).requires_grad_()
    output = chunked_logprobs(hidden=hidden, head_weight=weight, targets=targets, chunk_size=2)
    got = torch.autograd.grad(output.logprobs.sum(), trained)
    want = torch.autograd.grad((hidden @ weight.T).log_softmax(1).gather(1, targets[:, None]).sum(), trained)
    torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-12)


def test_bfloat16_softmax_runs_in_float32() -> None:
    """The only rounding allowed is that of the product itself."""
    hidden, weight, _, targets = head_problem(torch.bfloat16, vocabulary=5000)
    got = chunked_logprobs(hidden=hidden, head_weight=weight, targets=targets, chunk_size=3).logprobs
    want = (hidden @ weight.T).double().log_softmax(1).gather(1, targets[:, None]).squeeze(1)
    assert got.dtype == torch.float32
    torch.testing.assert_close(got.double(), want, rtol=1e-6, atol=1e-6)


def test_bfloat16_head_gradient_is_accumulated_in_float32() -> None:
    """512 chunks of one token each add the same gradient: in bfloat16 the sum would stop growing at 256 steps."""
    rows = 512
    hidden = torch.ones(rows, 1, dtype=torch.bfloat16)
    weight = torch.zeros(2, 1, dtype=torch.bfloat16, requires_grad=True)
    targets = torch.zeros(rows, dtype=torch.long)
    chunked_logprobs(hidden=hidden, head_weight=weight, targets=targets, chunk_size=1).logprobs.sum().backward()
    assert weight.grad is not None
    assert weight.grad.dtype == torch.bfloat16
    assert weight.grad.flatten().tolist() == [rows / 2, -rows / 2]


def test_kept_slopes_stay_within_their_room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rlkd.tensors.chunked.KEPT_BYTES", 7 * 11 * 2)
    slopes, taken = Slopes(torch.zeros(30, 4, dtype=torch.bfloat16), 11, wanted=True), []
    for rows in (3, 3, 3, 1):  # the third would make 9 of the 7 rows that there is room for; after it, none is taken
        taken.append(slopes.takes(rows))
        if taken[-1]:
            slopes.keep(torch.zeros(rows, 11))
    assert taken == [True, True, False, False]
    assert not Slopes(torch.zeros(30, 4), 11, wanted=False).takes(1)


def test_scoring_keeps_no_slopes(monkeypatch: pytest.MonkeyPatch) -> None:
    """The head of a policy that is only scored requires a gradient too: it must cost nothing there."""
    hidden, weight, _, targets = head_problem()
    given: dict[str, Any] = {"hidden": hidden, "head_weight": weight.requires_grad_(), "targets": targets}
    counted: list[int] = []
    monkeypatch.setattr("rlkd.tensors.chunked.Slopes.keep", lambda _, slope: counted.append(len(slope)))
    with torch.no_grad():
        chunked_logprobs(**given)
    assert counted == []
    chunked_logprobs(**given)
    assert counted == [7]


def test_kept_slopes_round_no_worse_than_the_product(monkeypatch: pytest.MonkeyPatch) -> None:
    """In bfloat16 a kept slope is rounded before it is scaled; of a probability near 1 nothing may be lost by that."""
    hidden, weight, _, targets = head_problem(torch.bfloat16, rows=40, width=64, vocabulary=500)
    targets[:20] = (hidden.double() @ weight.double().T).argmax(1)[:20]  # confident and right: 1 - p is tiny
    upstream = torch.linspace(-1, 2, 40)
    precise = [tensor.double().requires_grad_() for tensor in (hidden, weight)]
    exact = (precise[0] @ precise[1].T).log_softmax(1).gather(1, targets[:, None])[:, 0]
    want = torch.autograd.grad(exact @ upstream.double(), precise)

    def errors(kept_bytes: int) -> list[float]:
        monkeypatch.setattr("rlkd.tensors.chunked.KEPT_BYTES", kept_bytes)
        given = [tensor.clone().requires_grad_() for tensor in (hidden, weight)]
        output = chunked_logprobs(hidden=given[0], head_weight=given[1], targets=targets, chunk_size=5)
        got = torch.autograd.grad(output.logprobs @ upstream, given)
        return [float((first - second).norm() / second.norm()) for first, second in zip(got, want, strict=True)]

    recomputed = errors(0)
    assert max(recomputed) < 0.02
    for kept in (errors(10 * 500 * 2), errors(2**20)):
        assert all(now < 1.5 * before for now, before in zip(kept, recomputed, strict=True)), (kept, recomputed)


@pytest.mark.usefixtures("kept")
@pytest.mark.parametrize("chunk_size", [2, 4])
def test_masked_rows_may_hold_nan(chunk_size: int) -> None:
    hidden, weight, _, targets = head_problem()
    dirty = hidden.clone()
    dirty[2] = math.nan
    mask = torch.ones(7, dtype=torch.bool)
    mask[2] = False
    gradients = []
    for states in (hidden, dirty):
        inputs = [states.requires_grad_(), weight.requires_grad_()]
        logprobs = chunked_logprobs(hidden=states, head_weight=weight, targets=targets, chunk_size=chunk_size)
        gradients.append(torch.autograd.grad(masked_sum(logprobs.logprobs, mask), inputs))
    torch.testing.assert_close(gradients[0], gradients[1], rtol=0, atol=1e-14)
    assert gradients[1][0].isfinite().all()


def test_masked_vocabulary_has_no_mass_and_no_gradient() -> None:
    hidden, weight, bias, _ = head_problem()
    bias[3] = -math.inf
    targets = torch.zeros(7, dtype=torch.long)
    output = chunked_logprobs(
        hidden=hidden, head_weight=weight.requires_grad_(), head_bias=bias, targets=targets, with_entropy=True
    )
    keep = torch.arange(11) != 3
    distribution = (hidden @ weight.detach().T + bias)[:, keep].log_softmax(1)
    assert output.entropy is not None
    torch.testing.assert_close(output.entropy, -(distribution.exp() * distribution).sum(1), rtol=1e-12, atol=1e-12)
    output.logprobs.sum().backward()
    assert weight.grad is not None
    assert weight.grad[3].tolist() == [0.0] * 5
    assert weight.grad.isfinite().all()


def test_no_rows_are_no_problem() -> None:
    _, weight, _, _ = head_problem()
    hidden = torch.zeros(0, 5, dtype=torch.float64, requires_grad=True)
    output = chunked_logprobs(hidden=hidden, head_weight=weight, targets=torch.zeros(0, dtype=torch.long))
    output.logprobs.sum().backward()
    assert output.logprobs.shape == (0,)
    assert hidden.grad is not None


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hidden": torch.zeros(7, 4, dtype=torch.float64)}, "hidden"),
        ({"hidden": torch.zeros(7, 5)}, "float32"),
        ({"targets": torch.zeros(6, dtype=torch.long)}, "targets"),
        ({"targets": torch.zeros(7)}, "integers"),
        ({"targets": torch.full((7,), 11)}, r"\[0, 11\)"),
        ({"targets": torch.full((7,), -100)}, r"\[0, 11\)"),
        ({"temperature": 0.0}, "temperature"),
        ({"temperature": -1.0}, "temperature"),
        ({"chunk_size": 0}, "chunk_size"),
        ({"head_bias": torch.zeros(5, dtype=torch.float64)}, "head_bias"),
    ],
)
def test_bad_input_is_refused(change: dict[str, object], message: str) -> None:
    hidden, weight, _, targets = head_problem()
    inputs: dict[str, object] = {"hidden": hidden, "head_weight": weight, "targets": targets}
    with pytest.raises(NumericsError, match=message):
        chunked_logprobs(**(inputs | change))  # type: ignore[arg-type]
