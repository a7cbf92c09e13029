"""Whole-vocabulary divergences from hidden states and output matrices, without ever holding [tokens, vocabulary]."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

from rlkd.divergences.summands import DIVERGENCES, Kind, resolve
from rlkd.divergences.vocabulary import DivergenceOutput
from rlkd.errors import NumericsError
from rlkd.tensors.chunked import HeadGradient, check_temperature, checked_chunk_size, chunk_logits


def chunked_divergence(
    *,
    kind: Kind,
    hidden: Float[Tensor, "N D"],
    head_weight: Float[Tensor, "V D"],
    teacher_hidden: Float[Tensor, "N E"],
    teacher_head_weight: Float[Tensor, "W E"],
    head_bias: Float[Tensor, " V"] | None = None,
    teacher_head_bias: Float[Tensor, " W"] | None = None,
    vocabulary_size: int | None = None,
    mixture_weight: float | None = None,
    clip: float = math.inf,
    temperature: float = 1.0,
    chunk_size: int | None = None,
) -> DivergenceOutput:
    """``divergence`` of the two heads' distributions, a chunk of positions at a time.

        logits = head_weight @ hidden + head_bias, for policy and teacher; then as ``divergence`` says

    Args:
        kind, mixture_weight, clip, temperature: as in ``divergence``.
        hidden, head_weight, head_bias: [N, D], [V, D], [V] of the policy. Gradient flows here.
        teacher_hidden, teacher_head_weight, teacher_head_bias: [N, E], [W, E], [W]; the width may differ. No gradient.
        vocabulary_size: entries that both models share, counted from 0 (heads are often padded to different sizes);
            the rest is left out of both distributions. Needed when V and W differ.
        chunk_size: positions at a time; default: 64 MiB of float32 logits a model.

    Returns: DivergenceOutput of [N], float32 (float64 for float64 input).
    Gradient: exact, recomputed by chunks in the backward pass; positions whose incoming gradient is zero (masked) are
        skipped there, so that NaN in them is harmless.
    Raises: NumericsError for shapes, dtypes, vocabularies or settings that don't fit.
    Source: as ``divergence``; chunking as in Liger-Kernel's fused linear losses, without their assumption of a mean.
    Tested: test_chunked_divergence_equals_plain, test_chunked_divergence_gradcheck,
        test_padded_vocabularies_are_left_out, test_masked_positions_may_hold_nan
    """
    setting = _Setting(*resolve(kind, mixture_weight, clip), temperature)
    check_temperature(temperature)
    size = checked_chunk_size(hidden, head_weight, head_bias, chunk_size)
    checked_chunk_size(teacher_hidden, teacher_head_weight, teacher_head_bias, chunk_size)
    if hidden.shape[0] != teacher_hidden.shape[0]:
        raise NumericsError(
            f"hidden has {hidden.shape[0]} positions but teacher_hidden {teacher_hidden.shape[0]}; must be the same"
        )
    shared = _shared_vocabulary(head_weight.shape[0], teacher_head_weight.shape[0], vocabulary_size)
    # outside autograd's sight: the teacher is data, never trained; its head is kept as given, never copied (ZeRO-3)
    teacher = _Teacher(teacher_hidden.detach(), teacher_head_weight, teacher_head_bias)
    values, share = _ChunkedDivergence.apply(  # type: ignore[no-untyped-call]
        hidden, head_weight, head_bias, teacher, shared, setting, size
    )
    return DivergenceOutput(values, share)


class _Setting(NamedTuple):
    kind: str
    weight: float
    clip: float
    temperature: float


class _Teacher(NamedTuple):
    hidden: Tensor
    weight: Tensor
    bias: Tensor | None


def _shared_vocabulary(policy: int, teacher: int, given: int | None) -> int:
    if given is None and policy != teacher:
        raise NumericsError(
            f"the policy's head has {policy} rows and the teacher's {teacher}; give vocabulary_size, the number of "
            "tokens that both tokenizers share"
        )
    if given is not None and not 1 <= given <= min(policy, teacher):
        raise NumericsError(f"vocabulary_size is {given}, but must be in [1, {min(policy, teacher)}]")
    return policy if given is None else given


def _log_normalise(logits: Tensor) -> Tensor:
    """log_softmax of a chunk, written into the chunk."""
    largest = logits.amax(1, keepdim=True)
    logits -= largest
    return logits.sub_(logits.exp().sum(1, keepdim=True).log_())


def _chunk(hidden: Tensor, weight: Tensor, bias: Tensor | None, shared: int, temperature: float) -> Tensor:
    return chunk_logits(hidden, weight[:shared], None if bias is None else bias[:shared], temperature)


class _ChunkedDivergence(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        teacher: _Teacher,
        shared: int,
        setting: _Setting,
        size: int,
    ) -> tuple[Tensor, Tensor]:
        precise = torch.float64 if hidden.dtype == torch.float64 else torch.float32
        values = torch.empty(hidden.shape[0], dtype=precise, device=hidden.device)
        share = torch.zeros_like(values)
        summand = DIVERGENCES[setting.kind].summand
        with torch.autocast(hidden.device.type, enabled=False):
            for start in range(0, hidden.shape[0], size):
                rows = slice(start, start + size)
                ls = _log_normalise(_chunk(hidden[rows], weight, bias, shared, setting.temperature))
                lt = _log_normalise(
                    _chunk(teacher.hidden[rows], teacher.weight, teacher.bias, shared, setting.temperature)
                )
                summands = summand(ls, lt, setting.weight)
                if setting.clip < math.inf:
                    share[rows] = (lt.exp() * (summands > setting.clip)).sum(1)
                    summands.clamp_(max=setting.clip)
                values[rows] = summands.sum(1)
        ctx.save_for_backward(hidden, weight, bias, teacher.hidden, teacher.weight, teacher.bias)
        ctx.shared, ctx.setting, ctx.size = shared, setting, size
        ctx.mark_non_differentiable(share)
        return values, share

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, gradient: Tensor, _share: Tensor) -> tuple[Tensor | None, ...]:
        hidden, weight, bias, *teacher = ctx.saved_tensors
        setting, shared = ctx.setting, ctx.shared
        head = HeadGradient(hidden, weight, bias, ctx.needs_input_grad[:3])
        with torch.autocast(hidden.device.type, enabled=False):
            for rows in gradient.nonzero().squeeze(1).split(ctx.size):
                inputs = hidden[rows]
                ls = _log_normalise(_chunk(inputs, weight, bias, shared, setting.temperature))
                lt = _log_normalise(_chunk(teacher[0][rows], teacher[1], teacher[2], shared, setting.temperature))
                slope = DIVERGENCES[setting.kind].slope(ls, lt, setting.weight)
                if setting.clip < math.inf:
                    slope.masked_fill_(DIVERGENCES[setting.kind].summand(ls, lt, setting.weight) > setting.clip, 0.0)
                slope -= ls.exp_() * slope.sum(1, keepdim=True)
                slope *= gradient[rows, None] / setting.temperature
                head.add(rows, inputs, slope)
        return *head.result(), None, None, None, None
