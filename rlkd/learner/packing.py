"""Rows -> packed micro-batches without padding, where the rows of a group share one copy of their prompt.

A group of G completions of one prompt costs ``P + sum(C_i - 1)`` tokens instead of ``sum(P + C_i)``: the prompt is
computed once and every completion attends to it. The last token of a completion is never an input, because nothing
is predicted from it. The gradient is the same; a test compares it with the padded form.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from rlkd.errors import NumericsError
from rlkd.learner.layout import Layout, Stretch, build_layout
from rlkd.records import TrainRow

SHARED_LIMIT = 2048  # prompt + completion tokens up to which a prompt is shared


@dataclass(frozen=True)
class MicroBatch:
    """Packed inputs of one forward pass; ``layout`` tells attention who sees whom.

    ``input_ids`` and ``position_ids`` are [T]; ``select`` [N] holds, for each completion token, the packed position
    whose hidden state predicts it; ``targets`` [N] its id; ``row`` and ``column`` [N] its place in a completion-aligned
    [B, C] tensor.
    """

    rows: tuple[TrainRow, ...]
    layout: Layout
    input_ids: Tensor
    position_ids: Tensor
    select: Tensor
    targets: Tensor
    row: Tensor
    column: Tensor

    @property
    def width(self) -> int:
        """C: the longest completion."""
        return max((len(row.completion_ids) for row in self.rows), default=1)

    def scatter(self, values: Tensor) -> Tensor:
        """[N] per completion token -> [B, C], zeros elsewhere."""
        grid = values.new_zeros(len(self.rows), self.width)
        return grid.index_put((self.row, self.column), values)


def shares_prompt(rows: Sequence[TrainRow]) -> bool:
    """Whether rows of one prompt are laid out behind a single copy of it.

    Very long rows are not: sharing needs an attention mask of [rows, C, P + C], and there the prompt matters little.
    """
    return len(rows) > 1 and len(rows[0].prompt_ids) + max(len(row.completion_ids) for row in rows) <= SHARED_LIMIT


def group_cost(rows: Sequence[TrainRow]) -> int:
    """Packed tokens of rows that share a prompt."""
    copies = 1 if shares_prompt(rows) else len(rows)
    return copies * len(rows[0].prompt_ids) + sum(len(row.completion_ids) - 1 for row in rows)


def split_groups(rows: Sequence[TrainRow]) -> list[list[TrainRow]]:
    """Rows by group, in order of first appearance. Raises: NumericsError when prompts within a group differ."""
    groups: dict[tuple[int, tuple[int, ...]], list[TrainRow]] = {}
    for row in rows:
        if not row.prompt_ids or not row.completion_ids:
            raise NumericsError(f"group {row.group}: a row needs at least one prompt and one completion token")
        groups.setdefault((row.group, row.prompt_ids), []).append(row)
    return list(groups.values())


def plan_micro_batches(rows: Sequence[TrainRow], *, token_budget: int) -> list[list[list[TrainRow]]]:
    """Groups per micro-batch, each at most ``token_budget`` packed tokens where that is possible.

    A group over the budget is cut into parts that repeat the prompt; one row over it is a micro-batch of its own.
    Long groups first, so that micro-batches are even and completions of like length meet.
    """
    by_length = [sorted(group, key=lambda row: -len(row.completion_ids)) for group in split_groups(rows)]
    parts = [part for group in by_length for part in cut_group(group, token_budget)]
    parts.sort(key=lambda part: -group_cost(part))
    bins: list[list[list[TrainRow]]] = []
    costs: list[int] = []
    for part in parts:
        cost = group_cost(part)
        fits = next((index for index, used in enumerate(costs) if used + cost <= token_budget), None)
        if fits is None:
            bins.append([part])
            costs.append(cost)
        else:
            bins[fits].append(part)
            costs[fits] += cost
    return bins


def cut_group(group: Sequence[TrainRow], token_budget: int) -> list[list[TrainRow]]:
    """Rows of one prompt, in order, as parts within the budget; a row that exceeds it is a part of its own."""
    parts: list[list[TrainRow]] = [[]]
    for row in group:
        if parts[-1] and group_cost([*parts[-1], row]) > token_budget:
            parts.append([])
        parts[-1].append(row)
    return parts


def pack(groups: Sequence[Sequence[TrainRow]], *, device: torch.device | str = "cpu") -> MicroBatch:
    """Lay groups out one after the other."""
    packer = _Packer()
    for group in groups:
        if shares_prompt(group):
            start = packer.prompt(group[0].prompt_ids)
            for row in group:
                packer.completion(row, start)
        else:
            for row in group:
                packer.whole(row)
    return packer.finish(device)


class _Packer:
    """Accumulates tokens, and for every row where its queries and keys lie."""

    def __init__(self) -> None:
        self.ids: list[int] = []
        self.positions: list[int] = []
        self.select: list[int] = []
        self.rows: list[TrainRow] = []
        self.stretches: list[Stretch] = []

    def prompt(self, prompt: Sequence[int]) -> int:
        """A prompt that several completions share. Returns: where it starts."""
        start = self._tokens(prompt, 0)
        self.stretches.append(Stretch(start, len(prompt)))
        return start

    def completion(self, row: TrainRow, prompt_start: int) -> None:
        """A completion behind a shared prompt."""
        length = len(row.prompt_ids)
        start = self._tokens(row.completion_ids[:-1], length)
        if len(row.completion_ids) > 1:
            self.stretches.append(Stretch(start, len(row.completion_ids) - 1, prompt_start, length))
        self._predict(row, prompt_start + length - 1, start)

    def whole(self, row: TrainRow) -> None:
        """A row with a prompt of its own."""
        length = len(row.prompt_ids)
        start = self._tokens((*row.prompt_ids, *row.completion_ids[:-1]), 0)
        self.stretches.append(Stretch(start, length + len(row.completion_ids) - 1))
        self._predict(row, start + length - 1, start + length)

    def _tokens(self, tokens: Sequence[int], position: int) -> int:
        start = len(self.ids)
        self.ids += tokens
        self.positions += range(position, position + len(tokens))
        return start

    def _predict(self, row: TrainRow, first: int, rest: int) -> None:
        """The first token is predicted from the prompt's last, each later one from its predecessor."""
        self.select += [first, *range(rest, rest + len(row.completion_ids) - 1)]
        self.rows.append(row)

    def finish(self, device: torch.device | str) -> MicroBatch:
        def tensor(values: Sequence[int]) -> Tensor:
            return torch.tensor(values, dtype=torch.long, device=device)

        targets = [token for row in self.rows for token in row.completion_ids]
        row_of = [index for index, row in enumerate(self.rows) for _ in row.completion_ids]
        column_of = [column for row in self.rows for column in range(len(row.completion_ids))]
        return MicroBatch(
            rows=tuple(self.rows),
            layout=build_layout(self.stretches, total=len(self.ids), device=device),
            input_ids=tensor(self.ids),
            position_ids=tensor(self.positions),
            select=tensor(self.select),
            targets=tensor(targets),
            row=tensor(row_of),
            column=tensor(column_of),
        )


def blank(device: torch.device | str) -> MicroBatch:
    """One token that trains nothing: for passes that only other ranks have work for."""
    row = TrainRow(group=0, prompt_ids=(0,), completion_ids=(0,), rollout_logprobs=(0.0,), advantage=0.0)
    return pack([[row]], device=device)


@torch.no_grad()
def score_rows(
    forward: Callable[[MicroBatch], Any],
    rows: Sequence[TrainRow],
    *,
    token_budget: int,
    device: torch.device | str = "cpu",
) -> list[list[float]]:
    """Log-probabilities (nats) of every row's completion under ``forward``, in the order of ``rows``."""
    index_of = {id(row): index for index, row in enumerate(rows)}
    results: list[list[float]] = [[] for _ in rows]
    for groups in plan_micro_batches(rows, token_budget=token_budget):
        batch = pack(groups, device=device)
        grid = batch.scatter(forward(batch).logprobs).cpu().tolist()
        for row, values in zip(batch.rows, grid, strict=True):
            results[index_of[id(row)]] = values[: len(row.completion_ids)]
    return results


def score_sequences(
    forward: Callable[[MicroBatch], Any],
    sequences: Sequence[tuple[Sequence[int], Sequence[int]]],
    *,
    token_budget: int,
    device: torch.device | str = "cpu",
) -> list[list[float]]:
    """``score_rows`` for (prompt_ids, completion_ids) pairs; equal prompts are computed once."""
    prompts: dict[tuple[int, ...], int] = {}
    rows = []
    for prompt, completion in sequences:
        key, tokens = tuple(prompt), tuple(completion)
        group = prompts.setdefault(key, len(prompts))
        rows.append(TrainRow(group, key, tokens, rollout_logprobs=(0.0,) * len(tokens), advantage=0.0))
    return score_rows(forward, rows, token_budget=token_budget, device=device)
