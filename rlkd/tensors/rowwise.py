"""Whatever is computed row by row from logits over a whole vocabulary, a few rows at a time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

from rlkd.errors import NumericsError
from rlkd.tensors.chunked import HeadGradient, check_temperature, checked_chunk_size, chunk_logits

MIN_ROWS = 128  # below that, reading the heads costs more than the products


class TeacherHead(NamedTuple):
    """Hidden states of a teacher and the output matrix that makes logits of them; data, never trained."""

    hidden: Float[Tensor, "N E"]
    weight: Float[Tensor, "W E"]
    bias: Float[Tensor, " W"] | None = None


def chunked_rows(
    function: Callable[..., Tensor],
    *,
    hidden: Float[Tensor, "N D"],
    head_weight: Float[Tensor, "V D"],
    head_bias: Float[Tensor, " V"] | None = None,
    teachers: Sequence[TeacherHead] = (),
    extras: Sequence[Tensor] = (),
    temperature: float = 1.0,
    chunk_size: int | None = None,
) -> Tensor:
    """``function(policy_logits, *teacher_logits, *extras)`` of every row, without ever holding [rows, vocabulary].

        output_n = function(policy logits_n, each teacher's logits_n, extras_n)
        logits_n = (head_weight @ hidden_n + head_bias) / temperature

    For what has no chunked form of its own: several teachers mixed, logits standardised, boundary masses, ranked lists.

    Args:
        function: takes [n, V], then [n, W] a teacher, then n rows of each extra; returns [n] or [n, ...] floats. A row
            of its result may depend on that row only, and on tensors that it closes over only as data.
        hidden, head_weight, head_bias: [N, D], [V, D], [V] of the policy. Gradient flows here.
        teachers: one TeacherHead a teacher. No gradient.
        extras: tensors of N rows that the function also needs (support ids, gold tokens). No gradient.
        temperature: > 0; divides everyone's logits.
        chunk_size: rows at a time; default: 64 MiB of float32 logits over all models, and at least 128 rows.

    Returns: [N] or [N, ...]; logits are float32 (float64 for float64 input) whatever comes in.
    Gradient: that of the function, recomputed by chunks; rows whose incoming gradient is zero (masked) are skipped, so
        that NaN in them is harmless. Its memory: what autograd keeps of the function for one chunk.
    Raises: NumericsError for shapes, dtypes or a temperature that don't fit, or a function that doesn't keep the rows.
    Tested: test_anything_row_by_row_equals_plain, test_chunked_rows_gradcheck, test_rows_must_be_kept
    """
    size = checked_chunk_size(hidden, head_weight, head_bias, chunk_size)
    check_temperature(temperature)
    for teacher in teachers:
        checked_chunk_size(*teacher, chunk_size, "a teacher's ")
    counts = [hidden.shape[0], *(teacher.hidden.shape[0] for teacher in teachers), *(len(extra) for extra in extras)]
    if len(set(counts)) > 1:
        raise NumericsError(f"hidden, teachers and extras have {counts} rows; all must have the same number")
    if chunk_size is None:
        size = max(MIN_ROWS, size // (1 + len(teachers)))
    job = _Job(function, [TeacherHead(*teacher) for teacher in teachers], list(extras), temperature, size)
    output: Tensor = _ChunkedRows.apply(hidden, head_weight, head_bias, job)  # type: ignore[no-untyped-call]
    return output


class _Job(NamedTuple):
    """All that carries no gradient."""

    function: Callable[..., Tensor]
    teachers: list[TeacherHead]
    extras: list[Tensor]
    temperature: float
    size: int

    def run(self, logits: Tensor, rows: slice | Tensor) -> Tensor:
        """The function of some rows, given the policy's logits."""
        with torch.no_grad():
            taught = [chunk_logits(t.hidden[rows], t.weight, t.bias, self.temperature) for t in self.teachers]
        output = self.function(logits, *taught, *(extra[rows] for extra in self.extras))
        if output.shape[:1] != logits.shape[:1]:
            raise NumericsError(
                f"the function made {list(output.shape)} of {logits.shape[0]} rows; it must keep the rows"
            )
        return output


class _ChunkedRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, job: _Job) -> Tensor:
        chunks = []
        with torch.autocast(hidden.device.type, enabled=False):
            for start in range(0, max(1, hidden.shape[0]), job.size):
                rows = slice(start, start + job.size)
                chunks.append(job.run(chunk_logits(hidden[rows], weight, bias, job.temperature), rows))
        ctx.save_for_backward(hidden, weight, bias)
        ctx.job = job
        return torch.cat(chunks)

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        hidden, weight, bias = ctx.saved_tensors
        job: _Job = ctx.job
        head = HeadGradient(hidden, weight, bias, ctx.needs_input_grad[:3])
        with torch.autocast(hidden.device.type, enabled=False):
            for rows in (gradient != 0)[..., None].flatten(1).any(1).nonzero().squeeze(1).split(job.size):
                inputs = hidden[rows]
                with torch.enable_grad():
                    logits = chunk_logits(inputs, weight, bias, job.temperature).detach().requires_grad_()
                    chunk = job.run(logits, rows)
                (logits_gradient,) = torch.autograd.grad(chunk, logits, gradient[rows])
                head.add(rows, inputs, logits_gradient / job.temperature)
        return *head.result(), None
