"""A few vocabulary entries a position, and one exact bucket for all the rest."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable

from rlkd.errors import NumericsError
from rlkd.tensors.checks import as_float, require_same_shape
from rlkd.tensors.chunked import HeadGradient, check_temperature, checked_chunk_size, chunk_logits


class Support(NamedTuple):
    """Entries that a divergence looks at; ``valid`` is false for slots that repeat another (unions overlap)."""

    ids: Int[Tensor, "*S K"]
    valid: Bool[Tensor, "*S K"]


def top_support(logits: Float[Tensor, "*S V"], *, k: int) -> Support:
    """The k most likely entries of each position.

    Raises: NumericsError when k is not in [1, V].
    Tested: test_support_on_all_entries_equals_the_full_divergence
    """
    if not 1 <= k <= logits.shape[-1]:
        raise NumericsError(f"k is {k}, but must be in [1, {logits.shape[-1]}], the vocabulary")
    ids = logits.topk(k, dim=-1).indices
    return Support(ids, torch.ones_like(ids, dtype=torch.bool))


def union_support(first: Support, second: Support) -> Support:
    """The entries of either support, each once: teacher's and policy's top-k together.

    Tested: test_union_holds_each_entry_once
    """
    require_same_shape(first=first.ids[..., 0], second=second.ids[..., 0])
    repeated = (second.ids[..., :, None] == first.ids[..., None, :]) & first.valid[..., None, :]
    fresh = second.valid & ~repeated.any(-1)
    return Support(torch.cat([first.ids, second.ids], -1), torch.cat([first.valid, fresh], -1))


def bucketed(logits: Float[Tensor, "*S V"], support: Support) -> Float[Tensor, "*S K1"]:
    """Log-probabilities of the supported entries and, last, of all others together; they sum to 1 exactly.

        out_k = log p(id_k),   out_last = log sum_{v not in ids} p(v)

    Args:
        logits: [..., V] logits or log-probabilities. Gradient flows here.
        support: [..., K] entries; a slot that is not valid gets log-probability -inf.

    Returns: [..., K + 1] nats. The tail is summed, not taken as 1 - sum: it is exact however small.
    Gradient: through every logit, the tail's included. What an unnormalised top-k loses (mass may leave the set for
        free, and it collapses) cannot happen.
    Raises: NumericsError for ids outside the vocabulary or shapes that don't fit.
    Source: ours; the fault is verl#5041.
    Tested: test_bucketed_is_a_distribution, test_tail_is_exact_when_tiny
    """
    _check_support(support, logits.shape[:-1], logits.shape[-1])
    logprobs = as_float(logits).log_softmax(-1)
    chosen = logprobs.gather(-1, support.ids).where(support.valid, -torch.inf)
    return torch.cat([chosen, _log_tail(logprobs, support)[..., None]], -1)


def complete(
    logprobs: Float[Tensor, "*S K"], valid: Bool[Tensor, "*S K"] | None = None, *, tail_floor: float = 1e-7
) -> Float[Tensor, "*S K1"]:
    """Append the tail bucket to log-probabilities whose remaining entries are not at hand (a stored teacher's top-k).

        out_last = log max(1 - sum_k exp(logprobs_k), tail_floor)

    Args:
        logprobs: [..., K] nats, normalised over the whole vocabulary.
        valid: slots that count; default all.
        tail_floor: > 0; least mass of the tail. Float32 log-probabilities leave its mass uncertain by about 1e-7; an
            exact 0 there would make reverse KL infinite.

    Returns: [..., K + 1] nats.
    Raises: NumericsError when some position's probabilities sum to clearly more than 1: they are not log-probabilities
        over one vocabulary (logits, or a temperature applied to one side only).
    Tested: test_complete_matches_bucketed, test_unnormalised_logprobs_are_refused
    """
    chosen = as_float(logprobs)
    if valid is not None:
        require_same_shape(logprobs=logprobs, valid=valid)
        chosen = chosen.where(valid, -torch.inf)
    mass = chosen.exp().sum(-1, keepdim=True)
    if bool((mass > 1 + 1e-3).any()):
        raise NumericsError(f"probabilities of a support sum to {float(mass.max()):.4g} > 1: not log-probabilities")
    tail = (1 - mass).clamp(min=tail_floor).log()
    return torch.cat([chosen, tail], -1)


def chunked_bucketed(
    *,
    hidden: Float[Tensor, "N D"],
    head_weight: Float[Tensor, "V D"],
    support: Support,
    head_bias: Float[Tensor, " V"] | None = None,
    temperature: float = 1.0,
    chunk_size: int | None = None,
) -> Float[Tensor, "N K1"]:
    """``bucketed`` of a head's logits, a chunk of positions at a time.

    Args:
        hidden, head_weight, head_bias: [N, D], [V, D], [V]; the head is kept as given. Gradient flows here.
        support: [N, K].
        temperature: > 0; divides the logits.
        chunk_size: positions at a time; default: 64 MiB of float32 logits.

    Returns: [N, K + 1] nats, float32 (float64 for float64 input).
    Gradient: exact, recomputed by chunks; positions whose incoming gradient is zero are skipped.
    Raises: NumericsError for shapes, dtypes, ids or a temperature that don't fit.
    Tested: test_chunked_bucketed_equals_plain, test_chunked_bucketed_gradcheck
    """
    size = checked_chunk_size(hidden, head_weight, head_bias, chunk_size)
    check_temperature(temperature)
    _check_support(support, hidden.shape[:1], head_weight.shape[0])

    def of(logits: Tensor, rows: slice | Tensor) -> Tensor:
        return bucketed(logits, Support(support.ids[rows], support.valid[rows]))

    output: Tensor = ChunkedRows.apply(  # type: ignore[no-untyped-call]
        hidden, head_weight, head_bias, of, support.ids.shape[1] + 1, temperature, size
    )
    return output


def chunked_top_support(
    *,
    hidden: Float[Tensor, "N D"],
    head_weight: Float[Tensor, "V D"],
    k: int,
    head_bias: Float[Tensor, " V"] | None = None,
    chunk_size: int | None = None,
) -> Support:
    """``top_support`` of a head's logits, a chunk of positions at a time; no gradient (ids are discrete).

    Raises: NumericsError for shapes, dtypes or k that don't fit.
    Tested: test_chunked_top_support_equals_plain
    """
    size = checked_chunk_size(hidden, head_weight, head_bias, chunk_size)
    with torch.no_grad(), torch.autocast(hidden.device.type, enabled=False):
        logits = (chunk_logits(rows, head_weight, head_bias, 1.0) for rows in hidden.split(size))
        chosen = torch.cat([top_support(chunk, k=k).ids for chunk in logits])
    return Support(chosen, torch.ones_like(chosen, dtype=torch.bool))


def _log_tail(logprobs: Tensor, support: Support) -> Tensor:
    """log of the mass outside, with a gradient of 0 (not NaN) where nothing is outside."""
    vocabulary = logprobs.shape[-1]
    inside = torch.zeros(*logprobs.shape[:-1], vocabulary + 1, dtype=torch.bool, device=logprobs.device)
    # slots that are not valid mark a spare entry, so that they don't take their id out of the tail
    inside = inside.scatter_(-1, support.ids.where(support.valid, vocabulary), True)[..., :vocabulary]
    outside = logprobs.masked_fill(inside, -torch.inf)
    nothing = (outside == -torch.inf).all(-1, keepdim=True)
    return outside.masked_fill(nothing, 0.0).logsumexp(-1).masked_fill(nothing.squeeze(-1), -torch.inf)


def _check_support(support: Support, positions: torch.Size, vocabulary: int) -> None:
    require_same_shape(ids=support.ids, valid=support.valid)
    if support.ids.shape[:-1] != positions:
        raise NumericsError(f"support covers {list(support.ids.shape[:-1])} positions, but there are {list(positions)}")
    if support.ids.numel() and not 0 <= int(support.ids.min()) <= int(support.ids.max()) < vocabulary:
        raise NumericsError(
            f"support ids span {int(support.ids.min())} to {int(support.ids.max())}, but must be in [0, {vocabulary})"
        )


class ChunkedRows(torch.autograd.Function):
    """[N, width] computed row by row from the head's logits, a chunk at a time, again in the backward pass.

    ``of`` (logits of a chunk, its rows) gives [chunk, width]; gradient flows through the logits alone.
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        of: Callable[[Tensor, slice | Tensor], Tensor],
        width: int,
        temperature: float,
        size: int,
    ) -> Tensor:
        precise = torch.float64 if hidden.dtype == torch.float64 else torch.float32
        output = torch.empty(hidden.shape[0], width, dtype=precise, device=hidden.device)
        with torch.autocast(hidden.device.type, enabled=False):
            for start in range(0, hidden.shape[0], size):
                rows = slice(start, start + size)
                output[rows] = of(chunk_logits(hidden[rows], weight, bias, temperature), rows)
        ctx.save_for_backward(hidden, weight, bias)
        ctx.of, ctx.temperature, ctx.size = of, temperature, size
        return output

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        hidden, weight, bias = ctx.saved_tensors
        head = HeadGradient(hidden, weight, bias, ctx.needs_input_grad[:3])
        with torch.autocast(hidden.device.type, enabled=False):
            for rows in (gradient != 0).any(1).nonzero().squeeze(1).split(ctx.size):
                inputs = hidden[rows]
                with torch.enable_grad():
                    logits = chunk_logits(inputs, weight, bias, ctx.temperature).detach().requires_grad_()
                    chunk = ctx.of(logits, rows)
                (logits_gradient,) = torch.autograd.grad(chunk, logits, gradient[rows])
                head.add(rows, inputs, logits_gradient / ctx.temperature)
        return *head.result(), None, None, None, None
