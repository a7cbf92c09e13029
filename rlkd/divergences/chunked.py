"""Whole-vocabulary divergences from hidden states and output matrices, without ever holding [tokens, vocabulary]."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.autograd.function import once_differentiable

from rlkd.divergences.kernels import ChunkResult, Setting, chunk_divergence
from rlkd.divergences.summands import Kind, resolve
from rlkd.divergences.vocabulary import DivergenceOutput
from rlkd.errors import NumericsError
from rlkd.tensors.chunked import HeadGradient, Slopes, check_temperature, checked_chunk_size, chunk_logits
from rlkd.tensors.rowwise import MIN_ROWS

BUFFERS = 2  # two models' logits share the budget of one
CPU_BLOCK = 2**18  # logits a model that are worked on at a time: a processor's cache holds a few times as many


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
    weighed_alike: Bool[Tensor, " N"] | None = None,
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
        weighed_alike: [N] where the loss will give every position the same weight, and 0 elsewhere, as a mean over
            trained tokens does. The gradient is then taken on the way: no product is computed twice, and no slope kept.
            Another incoming gradient is computed anew, as exactly and at the price of this pass.
        chunk_size: positions at a time; default: 32 MiB of float32 logits a model, and at least 128 positions.

    Returns: DivergenceOutput of [N], float32 (float64 for float64 input).
    Gradient: exact; without ``weighed_alike`` that of the first positions is kept (256 MiB in hidden's dtype) and that
        of the others recomputed by chunks. Positions whose incoming gradient is zero (masked) are skipped, so that NaN
        in them is harmless.
    Raises: NumericsError for shapes, dtypes, vocabularies or settings that don't fit.
    Source: as ``divergence``; chunking as in Liger-Kernel's fused linear losses, without their assumption of a mean.
    Tested: test_chunked_divergence_equals_plain, test_chunked_divergence_gradcheck,
        test_padded_vocabularies_are_left_out, test_masked_positions_may_hold_nan,
        test_positions_weighed_alike_take_one_pass, test_another_weight_is_computed_anew
    """
    heads = (hidden, head_weight, head_bias, teacher_hidden, teacher_head_weight, teacher_head_bias)
    teacher, shared, size = _checked_heads(*heads, vocabulary_size, chunk_size)
    check_temperature(temperature)
    if weighed_alike is not None and (weighed_alike.dtype != torch.bool or weighed_alike.shape != hidden.shape[:1]):
        found = f"{weighed_alike.dtype} {list(weighed_alike.shape)}"
        raise NumericsError(f"weighed_alike is {found}, but must be torch.bool [{hidden.shape[0]}]")
    setting = Setting(*resolve(kind, mixture_weight, clip), temperature)
    values, share = _ChunkedDivergence.apply(  # type: ignore[no-untyped-call]
        hidden, head_weight, head_bias, teacher, shared, setting, size, torch.is_grad_enabled(), weighed_alike
    )
    return DivergenceOutput(values, share)


class _Teacher(NamedTuple):
    hidden: Tensor
    weight: Tensor
    bias: Tensor | None


def _checked_heads(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    teacher_hidden: Tensor,
    teacher_weight: Tensor,
    teacher_bias: Tensor | None,
    vocabulary_size: int | None,
    chunk_size: int | None,
) -> tuple[_Teacher, int, int]:
    """The teacher's side, the number of shared entries and the positions at a time."""
    size = checked_chunk_size(hidden, weight, bias, chunk_size)
    checked_chunk_size(teacher_hidden, teacher_weight, teacher_bias, chunk_size, "teacher_")
    if hidden.shape[0] != teacher_hidden.shape[0]:
        raise NumericsError(
            f"hidden has {hidden.shape[0]} positions but teacher_hidden {teacher_hidden.shape[0]}; must be the same"
        )
    shared = _shared_vocabulary(weight.shape[0], teacher_weight.shape[0], vocabulary_size)
    if chunk_size is None:
        size = max(MIN_ROWS, size // BUFFERS)
    # outside autograd's sight: the teacher is data, never trained; its head is kept as given, never copied (ZeRO-3)
    return _Teacher(teacher_hidden.detach(), teacher_weight, teacher_bias), shared, size


def _shared_vocabulary(policy: int, teacher: int, given: int | None) -> int:
    if given is None and policy != teacher:
        raise NumericsError(
            f"head_weight has {policy} rows and teacher_head_weight {teacher}; give vocabulary_size, the number of "
            "tokens that both tokenizers share"
        )
    if given is not None and not 1 <= given <= min(policy, teacher):
        raise NumericsError(f"vocabulary_size is {given}, but must be in [1, {min(policy, teacher)}]")
    return policy if given is None else given


class _Heads(NamedTuple):
    """Both models' hidden states and heads, and the entries that they share."""

    hidden: Tensor
    weight: Tensor
    bias: Tensor | None
    teacher: _Teacher
    shared: int

    def compute(self, rows: slice | Tensor, setting: Setting, *, with_gradient: bool) -> ChunkResult:
        """The divergence of some positions."""
        policy = _logits(self.hidden[rows], self.weight, self.bias, self.shared, setting)
        teacher = _logits(self.teacher.hidden[rows], self.teacher.weight, self.teacher.bias, self.shared, setting)
        is_finite = self.bias is None and self.teacher.bias is None
        blocks = [
            chunk_divergence(p, t, setting, is_finite=is_finite, with_gradient=with_gradient)
            for p, t in zip(*(side.split(_block_rows(policy)) for side in (policy, teacher)), strict=True)
        ]
        return _joined(blocks, policy)


def _block_rows(logits: Tensor) -> int:
    """Rows that the divergence takes at a time: what a processor's cache holds, or all of them on an accelerator."""
    return max(1, len(logits) if logits.is_cuda else CPU_BLOCK // logits.shape[1])


def _joined(blocks: list[ChunkResult], policy: Tensor) -> ChunkResult:
    """The blocks' results as one; gradients go where the policy's logits were."""
    values = torch.cat([block.values for block in blocks])
    share = None if blocks[0].share is None else torch.cat([b.share for b in blocks if b.share is not None])
    if blocks[0].gradient is None:
        return ChunkResult(values, share, None)
    for place, block in zip(policy.split(len(blocks[0].values)), blocks, strict=True):
        if block.gradient is not None and block.gradient.data_ptr() != place.data_ptr():
            place.copy_(block.gradient)
    return ChunkResult(values, share, policy)


def _logits(hidden: Tensor, weight: Tensor, bias: Tensor | None, shared: int, setting: Setting) -> Tensor:
    return chunk_logits(hidden, weight[:shared], None if bias is None else bias[:shared], setting.temperature)


class _ChunkedDivergence(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        teacher: _Teacher,
        shared: int,
        setting: Setting,
        size: int,
        is_training: bool,  # in here autograd is always off, and needs_input_grad doesn't know
        alike: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        heads = _Heads(hidden, weight, bias, teacher, shared)
        precise = torch.float64 if hidden.dtype == torch.float64 else torch.float32
        values = torch.empty(hidden.shape[0], dtype=precise, device=hidden.device)
        share = torch.zeros_like(values)
        needs = ctx.needs_input_grad[:3]
        trains = is_training and any(needs)
        slopes = Slopes(hidden, shared, wanted=trains and alike is None)
        ahead = HeadGradient(hidden, weight, bias, needs) if trains and alike is not None else None

        def fill(rows: slice | Tensor, *, with_gradient: bool) -> Tensor | None:
            chunk = heads.compute(rows, setting, with_gradient=with_gradient)
            values[rows] = chunk.values
            if chunk.share is not None:
                share[rows] = chunk.share
            return chunk.gradient

        with torch.autocast(hidden.device.type, enabled=False):
            if ahead is None or alike is None:
                for start in range(0, hidden.shape[0], size):
                    span = slice(start, start + size)
                    slope = fill(span, with_gradient=slopes.takes(len(values[span])))
                    if slope is not None:
                        slopes.keep(slope)
            else:
                for rows in _places(alike, size):
                    slope = fill(rows, with_gradient=True)
                    assert slope is not None
                    ahead.add(rows, hidden[rows], slope.div_(setting.temperature))
                for rows in _places(~alike, size):
                    fill(rows, with_gradient=False)
        ctx.save_for_backward(hidden, weight, bias, *teacher)
        ctx.shared, ctx.setting, ctx.size, ctx.slopes = shared, setting, size, slopes
        ctx.alike, ctx.ahead = alike, ahead
        ctx.mark_non_differentiable(share)
        return values, share

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, gradient: Tensor, _share: Tensor) -> tuple[Tensor | None, ...]:
        nothing = (None,) * 6
        # handed out, not copied: a copy of the head's gradient would be the largest thing in memory
        ahead, ctx.ahead = ctx.ahead, None
        if ahead is not None and (factor := _common(gradient, ctx.alike)) is not None:
            return *(None if part is None else part.mul_(factor) for part in ahead.result()), *nothing
        hidden, weight, bias, *teacher = ctx.saved_tensors
        heads = _Heads(hidden, weight, bias, _Teacher(*teacher), ctx.shared)
        sums = HeadGradient(hidden, weight, bias, ctx.needs_input_grad[:3])
        with torch.autocast(hidden.device.type, enabled=False):
            for rows, kept in ctx.slopes.rows(gradient, ctx.size):
                slope = heads.compute(rows, ctx.setting, with_gradient=True).gradient if kept is None else kept
                assert slope is not None
                slope *= gradient[rows, None] / ctx.setting.temperature
                sums.add(rows, hidden[rows], slope)
        return *sums.result(), *nothing


def _places(mask: Tensor, size: int) -> list[Tensor]:
    """Indices of the mask's positions, ``size`` at a time."""
    found = mask.nonzero().squeeze(1)
    return list(found.split(size)) if len(found) else []


def _common(gradient: Tensor, alike: Tensor) -> float | None:
    """The one number that the gradient holds at ``alike``, if it holds 0 everywhere else."""
    inside = gradient[alike]
    factor = float(inside[0]) if len(inside) else 0.0  # as a number: a bfloat16 tensor would round it
    return factor if torch.equal(gradient, alike * torch.full_like(gradient, factor)) else None
