"""Approximate likelihood matching (ALM): distillation between models whose tokenizers differ."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from rlkd.divergences.summands import weigh
from rlkd.errors import NumericsError
from rlkd.tensors.checks import as_float, require_axes, require_bool, require_floating, require_floats

Span = tuple[int, int]  # bytes [start, end) of a token in the text
EDGE = 1e-6  # keeps log-likelihoods below 0, where log(1 - e^u) is finite


class Chunk(NamedTuple):
    """Token ranges [start, end) of both models that cover the same bytes."""

    teacher: Span
    policy: Span


def byte_spans(byte_lengths: Sequence[int], *, start: int = 0) -> list[Span]:
    """Offsets of successive tokens from the number of bytes each stands for.

    Tokenizers report character offsets, in which the pieces of one split character overlap; bytes are exact. The length
    of a byte-level BPE token is that of its string in the vocabulary (one symbol a byte), 0 for a special token.

    Raises: NumericsError for a negative length.
    Tested: test_alignment_of_two_real_tokenizers
    """
    spans = []
    for length in byte_lengths:
        if length < 0:
            raise NumericsError(f"byte length {length} is negative")
        spans.append((start, start + length))
        start += length
    return spans


def align_chunks(*, teacher_spans: Sequence[Span], policy_spans: Sequence[Span]) -> list[Chunk]:
    """Smallest pieces of a text that both tokenizers end at the same byte.

    Args:
        teacher_spans, policy_spans: [start, end) byte offsets of each token, in order, over the SAME bytes: same first
            start, same last end. A token may be empty (special tokens): it joins the chunk it stands in. Give each
            piece between template tokens apart, so that no chunk crosses one.

    Returns: chunks in order; every token belongs to exactly one. One character split into several tokens (byte-level
        pieces) is one chunk, as it can only end where both end.
    Raises: NumericsError when spans are not contiguous, or both don't cover the same bytes.
    Source: ALM (2503.20083) sec 3.1; tokenkit align.py for the greedy rule.
    Differs: as published; uneven cover is an error, never cut off.
    Tested: test_alignment_by_hand, test_alignment_of_two_real_tokenizers, test_uneven_cover_is_refused
    """
    _check_spans("teacher_spans", teacher_spans)
    _check_spans("policy_spans", policy_spans)
    if not teacher_spans or not policy_spans:
        if teacher_spans or policy_spans:
            raise NumericsError("one side has no tokens, so both cannot cover the same bytes")
        return []
    ends = [(spans[0][0], spans[-1][1]) for spans in (teacher_spans, policy_spans)]
    if ends[0] != ends[1]:
        raise NumericsError(
            f"teacher_spans cover bytes {ends[0]} but policy_spans {ends[1]}; both must be the same text"
        )
    common = {end for _, end in teacher_spans} & {end for _, end in policy_spans}
    sides = (_cuts(teacher_spans, common), _cuts(policy_spans, common))
    return [Chunk(t, p) for t, p in zip(*sides, strict=True)]


def chunk_logprobs(logprobs: Float[Tensor, " T"], ranges: Sequence[Span]) -> Float[Tensor, " C"]:
    """Log-likelihood of each chunk: the sum over its tokens.

    Args:
        logprobs: [T] nats of one text's tokens. Gradient flows here.
        ranges: token ranges [start, end), one a chunk, in order (the teacher's or the policy's side of align_chunks).
            Tokens between them belong to no chunk.

    Raises: NumericsError when a range is empty, reaches outside the tokens or into the range before it.
    Tested: test_chunk_logprobs_sum_tokens, test_overlapping_chunks_are_refused
    """
    require_floating(logprobs=logprobs)
    require_axes("T", logprobs=logprobs)
    owner = torch.full(logprobs.shape, len(ranges), dtype=torch.long, device=logprobs.device)
    for chunk, (start, end) in enumerate(ranges):
        if not 0 <= start < end <= logprobs.shape[0]:
            raise NumericsError(f"chunk {chunk} spans tokens {start} to {end}, but logprobs holds {logprobs.shape[0]}")
        if chunk and start < ranges[chunk - 1][1]:
            raise NumericsError(
                f"chunk {chunk} starts at token {start}, but the one before it ends at {ranges[chunk - 1][1]}"
            )
        owner[start:end] = chunk
    values = as_float(logprobs)
    return values.new_zeros(len(ranges) + 1).index_add(0, owner, values.where(owner < len(ranges), 0.0))[:-1]


def alm(
    *,
    policy_chunks: Float[Tensor, " C"],
    teacher_chunks: Float[Tensor, " C"],
    temperature: float = 5.0,
    divergence: Literal["kl", "cross_entropy", "total_variation"] = "kl",
    policy_boundary: Float[Tensor, " C"] | None = None,
    teacher_boundary: Float[Tensor, " C"] | None = None,
) -> Float[Tensor, " C"]:
    """Divergence of {this chunk, anything else} under teacher and policy, chunk by chunk.

        u = (teacher chunk + boundary) / T,  w = (policy chunk + boundary) / T
        kl:               e^u (u - w) + (1 - e^u) (log(1 - e^u) - log(1 - e^w))
        cross_entropy:    the same without the teacher's own entropy: same gradient
        total_variation:  |e^u - e^w|

    Args:
        policy_chunks: [C] nats, from chunk_logprobs. Gradient flows here.
        teacher_chunks: [C] nats, of the same bytes. No gradient.
        temperature: > 0; low looks at likely chunks, high gives weight to long and unlikely ones. 5 was better than the
            paper's main 100.
        divergence: which.
        policy_boundary, teacher_boundary: [C] nats, log-mass each model puts, right after the chunk, on tokens that
            start a new pre-token (boundary_logmass): outcome debiasing. Both or neither.

    Returns: [C], >= 0 (kl, total_variation); average over chunks with a global denominator. A chunk that the teacher
        rules out (-inf) counts with its limit; one that only the policy rules out is inf.
    Gradient: through the policy; 0 when both agree. In its log-likelihood at T = 1 it is (pS - pT) / (1 - pS) of kl,
        without bound where the policy is sure, and +-pS of total_variation. kl has its limit at T -> inf:
        (1/T) [(lT - lS) + lT log(lS / lT)] with the chunks' log-likelihoods.
    Raises: NumericsError when shapes, dtypes or settings don't fit, or a log-likelihood is above 0.
    Source: ALM (2503.20083) Eq 5-9; tokenkit losses.py.
    Differs: log-likelihoods are moved 1e-6 below 0 only where they are closer (published code moves all).
    Tested: test_alm_by_hand, test_alm_slopes, test_alm_gradient_vanishes_at_the_teacher,
        test_alm_high_temperature_limit, test_alm_of_impossible_chunks, test_alm_of_two_real_tokenizers
    """
    require_floats(
        policy_chunks=policy_chunks,
        teacher_chunks=teacher_chunks,
        policy_boundary=policy_boundary,
        teacher_boundary=teacher_boundary,
    )
    if not 0 < temperature < math.inf:
        raise NumericsError(f"temperature is {temperature}, but must be positive and finite")
    if (policy_boundary is None) != (teacher_boundary is None):
        raise NumericsError("give both policy_boundary and teacher_boundary, or neither")
    teacher = as_float(teacher_chunks).detach()  # the teacher is data, never trained
    policy = as_float(policy_chunks)
    if policy_boundary is not None and teacher_boundary is not None:
        policy = policy + as_float(policy_boundary)
        teacher = teacher + as_float(teacher_boundary).detach()  # the teacher is data, never trained
    if bool((teacher > EDGE).any()) or bool((policy > EDGE).any()):
        raise NumericsError("a chunk's log-likelihood is above 0: these are not log-probabilities")
    u, w = _below_zero(teacher / temperature), _below_zero(policy / temperature)
    if divergence == "total_variation":
        return (u.exp() - w.exp()).abs()
    if divergence not in ("kl", "cross_entropy"):
        raise NumericsError(f"divergence is '{divergence}', but must be kl, cross_entropy or total_variation")
    cross = torch.expm1(u) * _log1mexp(w) - weigh(u, w)
    if divergence == "cross_entropy":
        return cross
    return cross + weigh(u, u) - torch.expm1(u) * _log1mexp(u)


def boundary_logmass(next_logits: Float[Tensor, "C V"], starts_pretoken: Bool[Tensor, " V"]) -> Float[Tensor, " C"]:
    """Log-mass on tokens that begin a new pre-token (space, newline, end): how surely the chunk has ended.

    Args:
        next_logits: [C, V] logits or log-probabilities of the token after each chunk (chunked_rows computes them a few
            at a time). Gradient flows here.
        starts_pretoken: [V] tokens whose first byte begins a pre-token, and end-of-text.

    Returns: [C] nats, <= 0.
    Raises: NumericsError when shapes or dtypes don't fit or no token starts a pre-token.
    Source: ALM (2503.20083) sec 3.3, outcome-chunk debiasing ("append_space").
    Tested: test_boundary_logmass, test_anything_row_by_row_equals_plain
    """
    require_floating(next_logits=next_logits)
    require_axes("C V", next_logits=next_logits)
    require_bool(starts_pretoken=starts_pretoken)
    if starts_pretoken.shape != next_logits.shape[-1:] or not bool(starts_pretoken.any()):
        raise NumericsError(
            f"starts_pretoken is {list(starts_pretoken.shape)}, but must be [{next_logits.shape[-1]}] and hold a true "
            "entry"
        )
    return as_float(next_logits).log_softmax(-1).masked_fill(~starts_pretoken, -torch.inf).logsumexp(-1)


def merge_uncertain(
    chunks: Sequence[Chunk], teacher_boundary: Float[Tensor, " C"], *, threshold: float = 0.1
) -> list[Chunk]:
    """Join each chunk that the teacher doesn't think has ended with the next one; the last one stays.

    Args:
        chunks: from align_chunks.
        teacher_boundary: [C] nats (boundary_logmass) after each chunk.
        threshold: in [0, 1], the paper's gamma: least probability that the chunk has ended.

    Raises: NumericsError when lengths differ, a boundary is NaN or the threshold leaves [0, 1].
    Source: ALM (2503.20083) sec 3.3; gamma 0.1.
    Tested: test_merge_uncertain
    """
    require_floating(teacher_boundary=teacher_boundary)
    if teacher_boundary.shape != (len(chunks),) or not 0 <= threshold <= 1:
        raise NumericsError(
            f"{len(chunks)} chunks, teacher_boundary {list(teacher_boundary.shape)}, threshold {threshold}: must be "
            "one boundary a chunk, and a threshold in [0, 1]"
        )
    if bool(teacher_boundary.isnan().any()):
        raise NumericsError("teacher_boundary holds NaN, but must be log-probabilities")
    merged: list[Chunk] = []
    is_open = False
    for chunk, mass in zip(chunks, teacher_boundary.exp().tolist(), strict=True):
        if is_open:
            last = merged.pop()
            chunk = Chunk((last.teacher[0], chunk.teacher[1]), (last.policy[0], chunk.policy[1]))
        merged.append(chunk)
        is_open = mass < threshold
    return merged


def gradient_magnitude_weights(norms: Float[Tensor, " L"]) -> Float[Tensor, " L"]:
    """Loss weights inverse to each loss's gradient norm at the last layer, summing to 1 (GradMag).

    Raises: NumericsError when norms are not [L], positive and finite.
    Source: ALM (2503.20083) sec 4.
    Tested: test_gradient_magnitude_weights
    """
    require_axes("L", norms=norms)
    require_floating(norms=norms)
    if not bool(((norms > 0) & norms.isfinite()).all()):
        raise NumericsError(f"gradient norms are {norms.tolist()}, but must be positive and finite")
    inverse = 1 / as_float(norms).detach()  # weights are data, never trained
    return inverse / inverse.sum()


def _check_spans(name: str, spans: Sequence[Span]) -> None:
    for i, (start, end) in enumerate(spans):
        if end < start or (i and start != spans[i - 1][1]):
            raise NumericsError(f"{name}[{i}] is ({start}, {end}), but must start where the one before it ends")


def _cuts(spans: Sequence[Span], common: set[int]) -> list[Span]:
    """Token ranges between successive common ends; empty tokens after a common end join the chunk before it."""
    cuts: list[Span] = []
    start = 0
    for i, (_, end) in enumerate(spans):
        is_last_there = i + 1 == len(spans) or spans[i + 1][1] > end
        if end in common and is_last_there:
            cuts.append((start, i + 1))
            start = i + 1
    return cuts


def _below_zero(x: Tensor) -> Tensor:
    """x, moved by EDGE where it is closer than that to 0; the slope stays 1, so a sure policy can be corrected."""
    return x.where(x < -EDGE, x - EDGE)


def _log1mexp(x: Tensor) -> Tensor:
    """log(1 - e^x) for x < 0, accurate at both ends."""
    near = x > -math.log(2)
    close = torch.log(-torch.expm1(x.where(near, -1.0)))
    far = torch.log1p(-x.where(~near, -1.0).exp())
    return torch.where(near, close, far)
