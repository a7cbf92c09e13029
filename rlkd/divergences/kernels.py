"""One chunk of a divergence and its gradient in the logits, written into the chunk's own buffers."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from rlkd.divergences.summands import DIVERGENCES


class Setting(NamedTuple):
    """What is computed, with limits resolved."""

    kind: str
    weight: float
    clip: float
    temperature: float


class ChunkResult(NamedTuple):
    """Value and clipped share of each position; gradient in the (tempered) logits, or None if it wasn't asked for."""

    values: Tensor
    share: Tensor | None
    gradient: Tensor | None


def chunk_divergence(
    policy_logits: Tensor, teacher_logits: Tensor, setting: Setting, *, is_finite: bool, with_gradient: bool
) -> ChunkResult:
    """The divergence of each row. Both inputs are overwritten. ``is_finite``: no logit can be -inf."""
    ls, lt = _log_normalise(policy_logits), _log_normalise(teacher_logits)
    if is_finite and setting.clip == math.inf:
        if setting.kind == "forward_kl":
            return _forward_kl(ls, lt, with_gradient)
        if setting.kind == "reverse_kl":
            return _reverse_kl(ls, lt, with_gradient)
        if setting.kind == "jensen_shannon":
            return _jensen_shannon(ls, lt, setting.weight, with_gradient)
    return _any(ls, lt, setting, with_gradient)


def _log_normalise(logits: Tensor) -> Tensor:
    logits -= logits.amax(1, keepdim=True)
    logits -= logits.exp().sum(1, keepdim=True).log_()
    return logits


def _forward_kl(ls: Tensor, lt: Tensor, with_gradient: bool) -> ChunkResult:
    gap = lt - ls
    p_teacher = lt.exp_()
    values = torch.linalg.vecdot(p_teacher, gap)
    return ChunkResult(values, None, ls.exp_().sub_(p_teacher) if with_gradient else None)


def _reverse_kl(ls: Tensor, lt: Tensor, with_gradient: bool) -> ChunkResult:
    gap = lt.neg_().add_(ls)
    p = ls.exp_()
    values = torch.linalg.vecdot(p, gap)
    return ChunkResult(values, None, gap.sub_(values[:, None]).mul_(p) if with_gradient else None)


def _jensen_shannon(ls: Tensor, lt: Tensor, beta: float, with_gradient: bool) -> ChunkResult:
    mixed = torch.logaddexp(lt + math.log(beta), ls + math.log1p(-beta))
    from_teacher = torch.linalg.vecdot(lt.exp(), lt.sub_(mixed))
    gap = mixed.neg_().add_(ls)
    p = ls.exp_()
    from_policy = torch.linalg.vecdot(p, gap)
    values = beta * from_teacher + (1 - beta) * from_policy
    if not with_gradient:
        return ChunkResult(values, None, None)
    return ChunkResult(values, None, gap.sub_(from_policy[:, None]).mul_(p).mul_(1 - beta))


def _any(ls: Tensor, lt: Tensor, setting: Setting, with_gradient: bool) -> ChunkResult:
    divergence = DIVERGENCES[setting.kind]
    summands = divergence.summand(ls, lt, setting.weight)
    share = cut = None
    if setting.clip < math.inf:
        cut = summands > setting.clip
        share = (lt.exp() * cut).sum(1)
        summands.clamp_(max=setting.clip)
    values = summands.sum(1)
    if not with_gradient:
        return ChunkResult(values, share, None)
    slope = divergence.slope(ls, lt, setting.weight)
    if cut is not None:
        slope.masked_fill_(cut, 0.0)
    slope -= ls.exp_() * slope.sum(1, keepdim=True)
    return ChunkResult(values, share, slope)
