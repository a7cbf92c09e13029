"""What the policy's next-token distributions are compared with, a micro-batch at a time."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from rlkd.divergences import (
    DivergenceOutput,
    Kind,
    Support,
    boundary_logmass,
    chunked_bucketed,
    chunked_divergence,
    complete,
    divergence,
)
from rlkd.errors import NumericsError
from rlkd.tensors import chunked_rows


@dataclass(frozen=True)
class Measure:
    """Which divergence; ``clip`` caps one vocabulary entry's summand, nats."""

    kind: Kind
    mixture_weight: float | None = None
    clip: float = math.inf


@dataclass(frozen=True)
class Head:
    """An output matrix; ``weight`` None is the policy's own."""

    weight: Tensor | None = None
    bias: Tensor | None = None


@dataclass(frozen=True)
class HiddenComparison:
    """A teacher's hidden states [M, E] at M of the N predicted tokens, and the head that turns them into logits.

    ``weighed_alike`` [M]: the positions that the loss will give one weight, and 0 the others (``chunked_divergence``).
    """

    measure: Measure
    hidden: Tensor
    positions: Tensor  # [M] indices into the micro-batch's N tokens
    head: Head = Head()
    weighed_alike: Tensor | None = None


@dataclass(frozen=True)
class TopKComparison:
    """A teacher's top entries [M, K] and their log-probs; everything else is one bucket."""

    measure: Measure
    ids: Tensor
    logprobs: Tensor
    positions: Tensor


@dataclass(frozen=True)
class BoundaryMass:
    """Not with a teacher: the policy's own log-mass, at M of the N positions, on tokens that begin a new pre-token."""

    starts_pretoken: Tensor  # [V]
    positions: Tensor


Comparison = HiddenComparison | TopKComparison | BoundaryMass


def compare(
    comparisons: Sequence[Comparison], *, hidden: Tensor, head: Head, temperature: float
) -> DivergenceOutput | None:
    """[N] divergence of each predicted token, 0 where nothing is compared; None without any comparison.

    Args:
        hidden: [N, D] of the policy. Gradient flows here and into ``head``.
        head: the policy's; its weight must be given.
        temperature: divides policy and teacher logits. Top-k log-probs already are at this temperature.
    """
    if not comparisons or head.weight is None:
        return None
    precise = torch.float64 if hidden.dtype == torch.float64 else torch.float32
    values = torch.zeros(hidden.shape[0], dtype=precise, device=hidden.device)
    share = torch.zeros_like(values)
    for comparison in comparisons:
        chosen = hidden.index_select(0, comparison.positions)
        if isinstance(comparison, HiddenComparison):
            found = _by_heads(comparison, chosen, head, temperature)
        elif isinstance(comparison, BoundaryMass):
            mass = boundary_mass(comparison.starts_pretoken, hidden=chosen, head=head, temperature=temperature)
            found = DivergenceOutput(mass, torch.zeros_like(mass))
        else:
            found = _by_buckets(comparison, chosen, head, temperature)
        values = values.index_add(0, comparison.positions, found.per_token.to(precise))
        share = share.index_add(0, comparison.positions, found.clipped_share.to(precise))
    return DivergenceOutput(values, share)


def _by_heads(comparison: HiddenComparison, hidden: Tensor, head: Head, temperature: float) -> DivergenceOutput:
    assert head.weight is not None
    own = comparison.head.weight is None
    weight = head.weight if own else comparison.head.weight
    bias = head.bias if own else comparison.head.bias
    assert weight is not None
    rows = (head.weight.shape[0], weight.shape[0])
    measure = comparison.measure
    return chunked_divergence(
        kind=measure.kind,
        mixture_weight=measure.mixture_weight,
        clip=measure.clip,
        hidden=hidden,
        head_weight=head.weight,
        head_bias=head.bias,
        teacher_hidden=comparison.hidden,
        teacher_head_weight=weight,
        teacher_head_bias=bias,
        # one tokenizer, checked at the start: heads that differ are padded to different sizes
        vocabulary_size=None if rows[0] == rows[1] else min(rows),
        temperature=temperature,
        weighed_alike=comparison.weighed_alike,
    )


def _by_buckets(comparison: TopKComparison, hidden: Tensor, head: Head, temperature: float) -> DivergenceOutput:
    assert head.weight is not None
    if comparison.measure.clip < math.inf:
        raise NumericsError("clip caps single vocabulary entries; the bucket of a top-k comparison is none")
    valid = comparison.logprobs > -math.inf
    policy = chunked_bucketed(
        hidden=hidden,
        head_weight=head.weight,
        head_bias=head.bias,
        support=Support(comparison.ids, valid),
        temperature=temperature,
    )
    return divergence(
        kind=comparison.measure.kind,
        mixture_weight=comparison.measure.mixture_weight,
        policy_logits=policy,
        teacher_logits=complete(comparison.logprobs, valid),
    )


def boundary_mass(starts_pretoken: Tensor, *, hidden: Tensor, head: Head, temperature: float) -> Tensor:
    """[N] ``boundary_logmass`` of a head's distributions; entries that pad it beyond its tokenizer start nothing.

    Rounding may lift the log of nearly all mass above 0, which ``alm`` refuses: it is cut there.

    Raises: NumericsError when the tokenizer has more tokens than the head.
    """
    assert head.weight is not None
    padding = head.weight.shape[0] - len(starts_pretoken)
    if padding < 0:
        raise NumericsError(f"a tokenizer of {len(starts_pretoken)} tokens, but a head of {head.weight.shape[0]} rows")
    starts = torch.nn.functional.pad(starts_pretoken, (0, padding))
    mass = chunked_rows(
        lambda logits: boundary_logmass(logits, starts),
        hidden=hidden,
        head_weight=head.weight,
        head_bias=head.bias,
        temperature=temperature,
    )
    return mass.clamp(max=0.0)
