"""A few vocabulary entries a position, and one exact bucket for all the rest."""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from rlkd.errors import NumericsError
from rlkd.tensors.checks import (
    as_float,
    require_bool,
    require_floating,
    require_integers,
    require_mask,
    require_same_shape,
)
from rlkd.tensors.chunked import checked_chunk_size, chunk_logits
from rlkd.tensors.rowwise import chunked_rows


class Support(NamedTuple):
    """Entries that a divergence looks at; ``valid`` is false for slots that repeat another (unions overlap)."""

    ids: Int[Tensor, "*S K"]
    valid: Bool[Tensor, "*S K"]


def top_support(logits: Float[Tensor, "*S V"], *, k: int) -> Support:
    """The k most likely entries of each position.

    Raises: NumericsError when k is not in [1, V], or logits are not floating point.
    Tested: test_support_on_all_entries_equals_the_full_divergence
    """
    require_floating(logits=logits)
    if not 1 <= k <= logits.shape[-1]:
        raise NumericsError(f"k is {k}, but must be in [1, {logits.shape[-1]}], the vocabulary")
    ids = logits.topk(k, dim=-1).indices
    return Support(ids, torch.ones_like(ids, dtype=torch.bool))


def union_support(first: Support, second: Support) -> Support:
    """The entries of either support, each once: teacher's and policy's top-k together.

    Raises: NumericsError when they cover different positions, or ids and valid don't fit each other.
    Tested: test_union_holds_each_entry_once
    """
    for support in (first, second):
        _check_fields(support)
    if first.ids.shape[:-1] != second.ids.shape[:-1]:
        raise NumericsError(
            f"first covers {list(first.ids.shape[:-1])} positions but second {list(second.ids.shape[:-1])}"
        )
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
    Raises: NumericsError for ids outside the vocabulary, or shapes or dtypes that don't fit. Ids that repeat within a
        position are not looked for: all but one of them must be marked as not valid (union_support does that).
    Source: ours; the fault is verl#5041.
    Tested: test_bucketed_is_a_distribution, test_tail_is_exact_when_tiny
    """
    require_floating(logits=logits)
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
        tail_floor: in (0, 1); least mass of the tail. Float32 log-probabilities leave its mass uncertain by about 1e-7;
            an exact 0 there would make reverse KL infinite.

    Returns: [..., K + 1] nats.
    Raises: NumericsError for shapes, dtypes or a floor that don't fit, and when some position's probabilities sum to
        clearly more than 1: they are not log-probabilities over one vocabulary (logits, or a temperature applied to
        one side only).
    Tested: test_complete_matches_bucketed, test_unnormalised_logprobs_are_refused
    """
    require_floating(logprobs=logprobs)
    if not 0 < tail_floor < 1:
        raise NumericsError(f"tail_floor is {tail_floor}, but must be in (0, 1)")
    chosen = as_float(logprobs)
    if valid is not None:
        require_mask(valid, logprobs, "valid", "logprobs")
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
    _check_support(support, hidden.shape[:1], head_weight.shape[0])

    def buckets(logits: Tensor, ids: Tensor, valid: Tensor) -> Tensor:
        return bucketed(logits, Support(ids, valid))

    return chunked_rows(
        buckets,
        hidden=hidden,
        head_weight=head_weight,
        head_bias=head_bias,
        extras=(support.ids, support.valid),
        temperature=temperature,
        chunk_size=chunk_size,
    )


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


def _check_fields(support: Support) -> None:
    require_integers(ids=support.ids)
    require_bool(valid=support.valid)
    require_same_shape(ids=support.ids, valid=support.valid)
    if support.ids.ndim == 0:
        raise NumericsError("a support has no axes, but its last one must hold the entries of a position")


def _check_support(support: Support, positions: torch.Size, vocabulary: int) -> None:
    _check_fields(support)
    if support.ids.shape[:-1] != positions:
        raise NumericsError(
            f"support.ids covers {list(support.ids.shape[:-1])} positions, but there are {list(positions)}"
        )
    if support.ids.numel() and not 0 <= int(support.ids.min()) <= int(support.ids.max()) < vocabulary:
        raise NumericsError(
            f"support ids span {int(support.ids.min())} to {int(support.ids.max())}, but must be in [0, {vocabulary})"
        )
