"""Log-probabilities of given tokens from hidden states, without ever holding [tokens, vocabulary]."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable

from rlkd.errors import NumericsError
from rlkd.tensors.checks import require_floating

CHUNK_BYTES = 64 * 2**20  # of float32 logits held at a time
KEPT_BYTES = 256 * 2**20  # of slopes that one forward pass keeps for its backward pass


class LogprobOutput(NamedTuple):
    """Per-token log-probabilities and, when asked for, entropies (nats, float32, no gradient through entropy)."""

    logprobs: Float[Tensor, " N"]
    entropy: Float[Tensor, " N"] | None


def chunked_logprobs(
    *,
    hidden: Float[Tensor, "N D"],
    head_weight: Float[Tensor, "V D"],
    head_bias: Float[Tensor, " V"] | None = None,
    targets: Int[Tensor, " N"],
    temperature: float = 1.0,
    chunk_size: int | None = None,
    with_entropy: bool = False,
) -> LogprobOutput:
    """Log-probability of each target under softmax of the head's logits, a chunk of tokens at a time.

        logprobs_n = l_n[target_n] - logsumexp_v l_n[v],    l_n = (head_weight @ hidden_n + head_bias) / temperature

    Args:
        hidden: [N, D] final hidden states. Gradient flows here.
        head_weight: [V, D] output matrix in hidden's dtype; kept as given, never copied (ZeRO-3). Gradient flows here.
        head_bias: [V] or None. Gradient flows here.
        targets: [N] token ids in [0, V).
        temperature: > 0; the logits are divided by it.
        chunk_size: tokens at a time; default: 64 MiB of float32 logits.
        with_entropy: also return the entropy of each distribution, detached.

    Returns: LogprobOutput, float32 (float64 for float64 input). The matrix product runs in hidden's dtype, softmax in
        float32.
    Gradient: exact; that of the first rows is kept (256 MiB in hidden's dtype), that of the others computed again.
        A bfloat16 head's gradient is accumulated over chunks in float32. Rows whose incoming gradient is zero (masked
        tokens) are skipped, so that NaN in them is harmless.
    Raises: NumericsError for shapes, dtypes, targets or a temperature that don't fit.
    Tested: test_chunked_logprobs_equal_plain, test_chunked_logprobs_gradcheck, test_masked_rows_may_hold_nan,
        test_kept_slopes_round_no_worse_than_the_product
    """
    size = checked_chunk_size(hidden, head_weight, head_bias, chunk_size)
    _check_targets(targets, hidden.shape[0], head_weight.shape[0])
    check_temperature(temperature)
    logprobs, entropy = _ChunkedLogprobs.apply(  # type: ignore[no-untyped-call]
        hidden, head_weight, head_bias, targets.long(), temperature, size, with_entropy, torch.is_grad_enabled()
    )
    return LogprobOutput(logprobs, entropy if with_entropy else None)


def checked_chunk_size(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, chunk_size: int | None, whose: str = ""
) -> int:
    """Tokens at a time for one head. Raises: NumericsError when hidden states and head don't fit each other."""
    names = f"{whose}hidden", f"{whose}head_weight", f"{whose}head_bias"
    if hidden.ndim != 2 or weight.ndim != 2 or hidden.shape[1] != weight.shape[1]:
        raise NumericsError(
            f"{names[0]} is {list(hidden.shape)} and {names[1]} {list(weight.shape)}; must be [N, D] and [V, D]"
        )
    if hidden.dtype != weight.dtype:
        raise NumericsError(f"{names[0]} is {hidden.dtype} but {names[1]} {weight.dtype}; cast one of them")
    require_floating(**{names[0]: hidden, names[2]: bias})
    if bias is not None and bias.shape != weight.shape[:1]:
        raise NumericsError(
            f"{names[2]} is {list(bias.shape)}, but must be [{weight.shape[0]}], one a row of {names[1]}"
        )
    if chunk_size is not None and chunk_size < 1:
        raise NumericsError(f"chunk_size is {chunk_size}, but must be at least 1")
    return chunk_size or max(1, CHUNK_BYTES // (4 * max(1, weight.shape[0])))


def check_temperature(temperature: float) -> None:
    """Raises: NumericsError unless 0 < temperature < inf."""
    if not 0 < temperature < float("inf"):
        raise NumericsError(f"temperature is {temperature}, but must be positive and finite")


def _check_targets(targets: Tensor, rows: int, vocabulary: int) -> None:
    if targets.shape != (rows,) or targets.dtype.is_floating_point or targets.dtype == torch.bool:
        raise NumericsError(f"targets is {targets.dtype} {list(targets.shape)}, but must be integers [{rows}]")
    if rows and not 0 <= int(targets.min()) <= int(targets.max()) < vocabulary:
        raise NumericsError(
            f"targets span {int(targets.min())} to {int(targets.max())}, but must be token ids in [0, {vocabulary})"
        )


def chunk_logits(hidden: Tensor, weight: Tensor, bias: Tensor | None, temperature: float) -> Tensor:
    """Fresh logits of one chunk in float32 or better; the caller may write into them."""
    logits = precise_product(hidden, weight.t())
    if bias is not None:
        logits += bias
    if temperature != 1.0:
        logits /= temperature
    return logits


def precise_product(first: Tensor, second: Tensor) -> Tensor:
    """Matrix product in the inputs' dtype, returned in float32 or better; on CUDA it is never rounded below that."""
    if first.is_cuda and first.dtype in (torch.float16, torch.bfloat16):
        return torch.mm(first, second, out_dtype=torch.float32)
    product = first @ second
    return product if product.dtype in (torch.float32, torch.float64) else product.float()


class HeadGradient:
    """Gradients of one head, gathered over chunks of rows, each only if it is asked for."""

    def __init__(self, hidden: Tensor, weight: Tensor, bias: Tensor | None, needs: tuple[bool, bool, bool]) -> None:
        self.head = weight
        precise = torch.float64 if weight.dtype == torch.float64 else torch.float32
        self.hidden = torch.zeros_like(hidden) if needs[0] else None
        self.weight = torch.zeros(weight.shape, dtype=precise, device=weight.device) if needs[1] else None
        self.bias = (
            torch.zeros(bias.shape, dtype=precise, device=bias.device) if bias is not None and needs[2] else None
        )
        self._dtypes = (weight.dtype, bias.dtype if bias is not None else None)

    def add(self, rows: Tensor, hidden: Tensor, logits_gradient: Tensor) -> None:
        """Add what the chunk of ``rows`` contributes; the gradient may cover only the head's first entries."""
        covered = logits_gradient.shape[1]
        if self.bias is not None:
            self.bias[:covered] += logits_gradient.sum(0)
        gradient = logits_gradient.to(hidden.dtype)
        if self.hidden is not None:
            self.hidden[rows] = gradient @ self.head[:covered]
        if self.weight is None:
            return
        if self.weight.dtype == gradient.dtype:
            self.weight[:covered].addmm_(gradient.t(), hidden)
        else:
            self.weight[:covered] += precise_product(gradient.t(), hidden)

    def result(self) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """Gradients of hidden, weight and bias in the inputs' dtypes."""
        weight = None if self.weight is None else self.weight.to(self._dtypes[0])
        bias = None if self.bias is None else self.bias.to(self._dtypes[1])
        return self.hidden, weight, bias


class Slopes:
    """Gradients of the first rows' values in their logits, in the hidden states' dtype, as many as KEPT_BYTES hold.

    They spare the backward pass the head's product and the softmax; rows beyond are computed again.
    """

    def __init__(self, hidden: Tensor, vocabulary: int, *, wanted: bool) -> None:
        self._dtype = hidden.dtype
        self._room = KEPT_BYTES // max(1, vocabulary * hidden.element_size()) if wanted else 0
        self._chunks: list[Tensor] = []

    def takes(self, rows: int) -> bool:
        """Whether the next chunk's slope is kept: give it to ``keep``. After the first that isn't, none is."""
        if rows > self._room:
            self._room = 0
        return rows <= self._room

    def keep(self, slope: Tensor) -> None:
        self._chunks.append(slope.to(self._dtype))
        self._room -= len(slope)

    def rows(self, gradient: Tensor, size: int) -> Iterator[tuple[Tensor, Tensor | None]]:
        """Rows whose incoming gradient is not zero, ``size`` or fewer at a time; each with a copy of what was kept."""
        start = 0
        for chunk in self._chunks:
            within = gradient[start : start + len(chunk)].nonzero().squeeze(1)
            yield start + within, chunk[within].to(gradient.dtype)
            start += len(chunk)
        for rows in gradient[start:].nonzero().squeeze(1).split(size):
            yield start + rows, None


class _ChunkedLogprobs(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        targets: Tensor,
        temperature: float,
        size: int,
        with_entropy: bool,
        is_training: bool,  # in here autograd is always off, and needs_input_grad doesn't know
    ) -> tuple[Tensor, Tensor]:
        precise = torch.float64 if hidden.dtype == torch.float64 else torch.float32
        normaliser = torch.empty(hidden.shape[0], dtype=precise, device=hidden.device)
        logprobs, entropy = torch.empty_like(normaliser), normaliser.new_empty(hidden.shape[0] if with_entropy else 0)
        slopes = Slopes(hidden, len(weight), wanted=is_training and any(ctx.needs_input_grad[:3]))
        with torch.autocast(hidden.device.type, enabled=False):
            for start in range(0, hidden.shape[0], size):
                rows = slice(start, start + size)
                logits = chunk_logits(hidden[rows], weight, bias, temperature)
                chosen = logits.gather(1, targets[rows, None]).squeeze(1)
                largest = logits.amax(1)
                logits -= largest[:, None]
                if with_entropy:
                    # -inf logits (masked vocabulary) carry no mass: bound them, so that 0 * -inf can't make NaN
                    shifted = logits.clamp(min=torch.finfo(precise).min)
                    mass = logits.exp_().sum(1)
                    entropy[rows] = mass.log() - torch.linalg.vecdot(logits, shifted) / mass
                else:
                    mass = logits.exp_().sum(1)
                normaliser[rows] = largest + mass.log()
                logprobs[rows] = chosen - normaliser[rows]
                if slopes.takes(len(chosen)):
                    slopes.keep(_slope(logits.div_(mass[:, None]), targets[rows]))
        ctx.save_for_backward(hidden, weight, bias, targets, normaliser)
        ctx.temperature, ctx.size, ctx.slopes = temperature, size, slopes
        ctx.mark_non_differentiable(entropy)
        return logprobs, entropy

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, gradient: Tensor, _entropy: Tensor) -> tuple[Tensor | None, ...]:
        hidden, weight, bias, targets, normaliser = ctx.saved_tensors
        head = HeadGradient(hidden, weight, bias, ctx.needs_input_grad[:3])
        with torch.autocast(hidden.device.type, enabled=False):
            for rows, kept in ctx.slopes.rows(gradient, ctx.size):
                inputs, slope = hidden[rows], kept
                if slope is None:
                    logits = chunk_logits(inputs, weight, bias, ctx.temperature)
                    slope = _slope(logits.sub_(normaliser[rows, None]).exp_(), targets[rows])
                head.add(rows, inputs, slope.mul_(gradient[rows, None] / ctx.temperature))
        return *head.result(), None, None, None, None, None


def _slope(probabilities: Tensor, targets: Tensor) -> Tensor:
    """The log-probability's gradient in the (tempered) logits, where the probabilities were."""
    return probabilities.neg_().scatter_add_(1, targets[:, None], probabilities.new_ones(len(targets), 1))
