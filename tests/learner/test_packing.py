"""Packed groups give the numbers and gradients of the plain padded model, however they are cut."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from learner_rows import random_rows
from torch import Tensor
from transformers import LlamaForCausalLM

from rlkd.errors import NumericsError
from rlkd.learner import packing
from rlkd.learner.packing import group_cost, pack, plan_micro_batches, score_rows, split_groups
from rlkd.learner.policy import PackedPolicy
from rlkd.learner.trl_sft import micro_batch_rows
from rlkd.records import TrainRow


def plain(model: LlamaForCausalLM, row: TrainRow) -> Tensor:
    """Log-probs of one row through transformers' own attention."""
    ids = torch.tensor([row.prompt_ids + row.completion_ids])
    before = model.config._attn_implementation
    model.set_attn_implementation("sdpa")
    logits: Tensor = model(input_ids=ids).logits[0].log_softmax(-1)
    model.set_attn_implementation(before)
    start = len(row.prompt_ids)
    return logits[start - 1 : -1].gather(1, ids[0, start:, None])[:, 0]


def packed_sum(model: LlamaForCausalLM, rows: list[TrainRow], budget: int, weight: Tensor) -> Tensor:
    """A loss that weighs every completion token differently."""
    total = torch.zeros((), dtype=torch.float64)
    for groups in plan_micro_batches(rows, token_budget=budget):
        batch = pack(groups)
        grid = batch.scatter(PackedPolicy(model)(batch).logprobs)
        for index, row in enumerate(batch.rows):
            length = len(row.completion_ids)
            total = total + (grid[index, :length] * weight[row.index, :length]).sum()
    return total


@pytest.mark.parametrize("budget", [1, 50, 200, 10**6])
def test_packed_logprobs_equal_plain(model: LlamaForCausalLM, budget: int) -> None:
    rows = random_rows(4, 4)
    scores = score_rows(PackedPolicy(model), rows, token_budget=budget)
    for row, found in zip(rows, scores, strict=True):
        torch.testing.assert_close(
            torch.tensor(found, dtype=torch.float64), plain(model, row).detach(), rtol=0, atol=1e-6
        )


@pytest.mark.parametrize("budget", [1, 80, 10**6])
def test_packed_gradient_equals_plain(model: LlamaForCausalLM, budget: int) -> None:
    rows = random_rows(3, 3, seed=1)
    weight = torch.randn(len(rows), 40, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    expected = sum((plain(model, row) * weight[row.index, : len(row.completion_ids)]).sum() for row in rows)
    want = torch.autograd.grad(expected, list(model.parameters()))  # type: ignore[arg-type]
    got = torch.autograd.grad(packed_sum(model, rows, budget, weight), list(model.parameters()))
    for one, other in zip(got, want, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=2e-6)


def test_unshared_long_rows_are_the_same(model: LlamaForCausalLM, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = random_rows(3, 4, seed=3)
    shared = score_rows(PackedPolicy(model), rows, token_budget=10**6)
    monkeypatch.setattr(packing, "SHARED_LIMIT", 0)
    assert group_cost(rows[:4]) == sum(len(r.prompt_ids) + len(r.completion_ids) - 1 for r in rows[:4])
    whole = score_rows(PackedPolicy(model), rows, token_budget=10**6)
    for one, other in zip(shared, whole, strict=True):
        assert one == pytest.approx(other, abs=1e-12)


def test_rows_do_not_see_each_other(model: LlamaForCausalLM) -> None:
    rows = random_rows(2, 3, seed=4)
    before = score_rows(PackedPolicy(model), rows, token_budget=10**6)
    changed = [*rows[:-1], dataclasses.replace(rows[-1], completion_ids=tuple(1 for _ in rows[-1].completion_ids))]
    after = score_rows(PackedPolicy(model), changed, token_budget=10**6)
    for one, other in zip(before[:-1], after[:-1], strict=True):
        assert one == pytest.approx(other, abs=1e-12)
    if len(rows[-1].completion_ids) > 1:
        assert before[-1] != pytest.approx(after[-1], abs=1e-6)


def test_prompt_is_computed_once_and_the_last_token_never() -> None:
    rows = random_rows(1, 4, seed=5)
    batch = pack([rows])
    assert len(batch.input_ids) == len(rows[0].prompt_ids) + sum(len(row.completion_ids) - 1 for row in rows)
    assert batch.targets.tolist() == [token for row in rows for token in row.completion_ids]


def test_budget_holds_where_it_can() -> None:
    rows = random_rows(6, 5, seed=6)
    for groups in plan_micro_batches(rows, token_budget=90):
        cost = sum(group_cost(group) for group in groups)
        assert cost <= 90 or (len(groups) == 1 and len(groups[0]) == 1)
    planned = [row.index for groups in plan_micro_batches(rows, token_budget=90) for group in groups for row in group]
    assert sorted(planned) == list(range(len(rows)))


def test_empty_rows_are_refused() -> None:
    row = TrainRow(0, (1,), (), (), advantage=0.0)
    with pytest.raises(NumericsError, match="at least one prompt and one completion token"):
        split_groups([row])


def test_a_short_sliding_window_is_refused(model: LlamaForCausalLM) -> None:
    for layer in model.model.layers:
        layer.self_attn.sliding_window = 4
    with pytest.raises(NumericsError, match="sliding window of 4"):
        score_rows(PackedPolicy(model), random_rows(1, 2, seed=7), token_budget=10**6)


@pytest.mark.parametrize(
    ("rows", "budget", "expected"), [(16, 10**6, 16), (16, 640, 4), (6, 500, 3), (7, 600, 1), (8, 1, 1)]
)
def test_rows_of_an_sft_micro_batch_divide_the_update(rows: int, budget: int, expected: int) -> None:
    assert micro_batch_rows(rows, 100, budget) == expected
