"""Who sees whom in a packed micro-batch: index tensors that turn packed tokens into a few padded attention calls.

Computed once a micro-batch and used by every layer. Padding exists only inside attention, and only between rows of
similar length.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

_SIMILAR = 0.7  # rows at least this long, relative to their bucket's longest, share a bucket


@dataclass(frozen=True)
class Stretch:
    """Consecutive packed tokens that attend causally to themselves and, if given, to all of a shared prefix."""

    start: int
    length: int
    prefix_start: int = 0
    prefix_length: int = 0


@dataclass(frozen=True)
class Bucket:
    """One attention call: packed positions of its queries [R, W] and keys [R, K].

    ``mask`` [R, 1, W, K] is None for plain causal rows. Padded queries are computed and dropped; padded keys are never
    seen by a real query.
    """

    query: Tensor
    key: Tensor
    mask: Tensor | None


@dataclass(frozen=True)
class Layout:
    """All buckets, and where each packed token's output stands in their concatenation [T]."""

    buckets: tuple[Bucket, ...]
    gather: Tensor
    longest: int


def build_layout(stretches: Sequence[Stretch], *, total: int, device: torch.device | str) -> Layout:
    """Sort stretches into buckets of similar length.

    Args:
        stretches: together they cover each of the ``total`` packed tokens once.
    """
    gather = torch.zeros(total, dtype=torch.long)
    buckets, offset = [], 0
    for shared in (False, True):
        chosen = [stretch for stretch in stretches if bool(stretch.prefix_length) == shared]
        for members in _similar(chosen):
            bucket, width = _bucket(members, device)
            for row, member in enumerate(members):
                places = torch.arange(member.length) + offset + row * width
                gather[member.start : member.start + member.length] = places
            offset += len(members) * width
            buckets.append(bucket)
    longest = max((stretch.prefix_length + stretch.length for stretch in stretches), default=0)
    return Layout(tuple(buckets), gather.to(device), longest)


def _similar(stretches: Sequence[Stretch]) -> list[list[Stretch]]:
    groups: list[list[Stretch]] = []
    for stretch in sorted(stretches, key=lambda s: (-(s.length + s.prefix_length), s.start)):
        size = stretch.length + stretch.prefix_length
        head = groups[-1][0] if groups else None
        if head is not None and size >= _SIMILAR * (head.length + head.prefix_length):
            groups[-1].append(stretch)
        else:
            groups.append([stretch])
    return groups


def _bucket(members: Sequence[Stretch], device: torch.device | str) -> tuple[Bucket, int]:
    width = max(member.length for member in members)
    prefix = max(member.prefix_length for member in members)
    starts = torch.tensor([member.start for member in members])[:, None]
    lengths = torch.tensor([member.length for member in members])[:, None]
    columns = torch.arange(width)[None, :]
    own = torch.where(columns < lengths, starts + columns, starts)
    if not prefix:
        return Bucket(own.to(device), own.to(device), None), width
    # Prefixes end where the stretch begins: pad them on the left.
    prefix_starts = torch.tensor([member.prefix_start for member in members])[:, None]
    prefix_lengths = torch.tensor([member.prefix_length for member in members])[:, None]
    back = torch.arange(prefix)[None, :] - (prefix - prefix_lengths)
    before = torch.where(back >= 0, prefix_starts + back, prefix_starts)
    causal = torch.ones(width, width, dtype=torch.bool).tril()
    seen = torch.cat([(back >= 0)[:, None, :].expand(-1, width, -1), causal.expand(len(members), -1, -1)], dim=2)
    return Bucket(own.to(device), torch.cat([before, own], dim=1).to(device), seen[:, None].to(device)), width
