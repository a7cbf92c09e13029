"""KDRL: policy gradient and distillation at the same tokens, which rows are distilled, and its schedules."""

from __future__ import annotations

import math

import pytest
import torch
from ledger import differ, prove
from objective_cases import CREDIT, SCORES, WORLD, expected_score_gradient, local_gradients, pair, row

from rlkd.errors import NumericsError
from rlkd.objectives import (
    additive_advantage,
    anneal,
    clipped_surrogate,
    constant,
    distill_mask,
    hard_switch,
    kdrl_joint,
    linear,
    reinforce,
    reverse_kl_k2,
    truncated_importance_weight,
)

FAMILY = "KDRL"


def test_joint_equals_additive_when_on_policy() -> None:
    table, teacher, inputs = pair()
    surrogate = clipped_surrogate(
        policy_logprobs=inputs["policy_logprobs"],
        rollout_logprobs=inputs["policy_logprobs"].detach(),
        advantages=CREDIT,
        clip_low=0.2,
        clip_high=0.2,
    )
    joint = kdrl_joint(policy_loss=surrogate, **inputs, distill_coef=0.3)
    shaped = additive_advantage(advantages=CREDIT, **inputs, distill_coef=0.3)
    additive = reinforce(policy_logprobs=inputs["policy_logprobs"], advantages=shaped)
    got = WORLD.expected_gradient(table, joint)
    want = -expected_score_gradient(table) + 0.3 * local_gradients(table, teacher)[0]
    prove(FAMILY, "kdrl_joint", got, want)
    prove(FAMILY, "additive_advantage", WORLD.expected_gradient(table, additive), want)


def test_additive_advantage_gradient_is_reverse_kl() -> None:
    """KD-RKL: no score, the log-ratio alone as credit."""
    table, teacher, inputs = pair()
    shaped = additive_advantage(advantages=torch.zeros_like(CREDIT), **inputs, distill_coef=1.0)
    assert not shaped.requires_grad
    loss = reinforce(policy_logprobs=inputs["policy_logprobs"], advantages=shaped)
    prove(FAMILY, "KD-RKL", WORLD.expected_gradient(table, loss), local_gradients(table, teacher)[0])


def test_off_policy_k2_needs_the_importance_weight() -> None:
    """Tokens of older weights: k2 times the detached sequence weight is exact again, without it another gradient."""
    table, teacher, inputs = pair()
    rollout = WORLD.table(9).detach()
    weight = truncated_importance_weight(
        policy_logprobs=inputs["policy_logprobs"],
        rollout_logprobs=WORLD.logprobs(rollout),
        response_mask=WORLD.mask,
        cap=math.inf,
        level="sequence",
    )
    loss = reverse_kl_k2(**inputs)
    want = local_gradients(table, teacher)[0]
    prove(FAMILY, "k2 off-policy, weighted", WORLD.expected_gradient(table, weight * loss, rollout), want)
    differ(WORLD.expected_gradient(table, loss, rollout), want)


def test_zero_advantage_still_distils() -> None:
    table, teacher, inputs = pair()
    joint = kdrl_joint(policy_loss=torch.zeros_like(CREDIT), **inputs, distill_coef=0.5)
    prove(
        FAMILY,
        "kdrl_joint, zero advantage",
        WORLD.expected_gradient(table, joint),
        0.5 * local_gradients(table, teacher)[0],
    )


def test_rows_that_are_not_kept_are_not_distilled() -> None:
    _, _, inputs = pair()
    keep = SCORES < 0
    plain = torch.ones_like(CREDIT)
    joint = kdrl_joint(policy_loss=plain, **inputs, distill_coef=0.5, keep=keep)
    shaped = additive_advantage(advantages=plain, **inputs, distill_coef=0.5, keep=keep)
    assert joint[~keep].equal(plain[~keep])
    assert shaped[~keep].equal(plain[~keep])
    gap = inputs["teacher_logprobs"] - inputs["policy_logprobs"]
    prove(FAMILY, "kdrl_joint, kept rows", joint[keep], (plain + 0.25 * gap.square())[keep])
    prove(FAMILY, "additive_advantage, kept rows", shaped[keep], (plain + 0.5 * gap)[keep])


def test_distill_mask_modes() -> None:
    correct = torch.tensor([True, False, False, False, False])
    ids = torch.tensor([4, 9, 4, 9, 5])
    assert distill_mask(rows="all", correct=correct, group_ids=ids).tolist() == [True] * 5
    assert distill_mask(rows="wrong_responses", correct=correct, group_ids=ids).tolist() == [
        False,
        True,
        True,
        True,
        True,
    ]
    assert distill_mask(rows="wrong_groups", correct=correct, group_ids=ids).tolist() == [
        False,
        True,
        False,
        True,
        True,
    ]


def test_anneal_reaches_the_papers_floor_at_step_80() -> None:
    values = [anneal(step, initial=5e-3, decrement=5e-5, minimum=1e-3) for step in (0, 1, 79, 80, 280)]
    assert values == pytest.approx([5e-3, 5e-3 - 5e-5, 5e-3 - 79 * 5e-5, 1e-3, 1e-3], abs=1e-15)
    assert values[2] > values[3]


def test_constant_and_switch() -> None:
    assert [constant(step, value=0.1) for step in (0, 10**6)] == [0.1, 0.1]
    assert [hard_switch(step, at=60, before=1.0, after=0.0) for step in (0, 59, 60, 61)] == [1.0, 1.0, 0.0, 0.0]


def test_linear_schedule_ends() -> None:
    got = [linear(step, start=0.0, end=0.5, steps=10) for step in (0, 5, 10, 99)]
    assert got == pytest.approx([0.0, 0.25, 0.5, 0.5])


def test_neither_teacher_nor_credit_is_trained() -> None:
    policy, teacher, credit = (row(-1.0, -2.0, -0.5).requires_grad_() for _ in range(3))
    taught = {"policy_logprobs": policy, "teacher_logprobs": teacher - 0.1}
    loss = kdrl_joint(policy_loss=reinforce(policy_logprobs=policy, advantages=credit), **taught, distill_coef=1.0)
    got = torch.autograd.grad(loss.sum(), [policy, teacher, credit], allow_unused=True)
    assert got[0] is not None
    assert got[0].abs().max() > 0
    assert got[1] is got[2] is None
    assert not additive_advantage(advantages=credit, **taught, distill_coef=1.0).requires_grad


@pytest.mark.usefixtures("unchecked")
def test_bad_kdrl_settings_are_refused() -> None:
    good = torch.zeros(2, 3)
    mask = torch.ones(2, 3, dtype=torch.bool)
    ids = torch.zeros(2, dtype=torch.long)
    with pytest.raises(NumericsError, match="distill_coef"):
        kdrl_joint(policy_loss=good, policy_logprobs=good, teacher_logprobs=good, distill_coef=-1.0)
    with pytest.raises(NumericsError, match="one entry a row"):
        additive_advantage(advantages=good, policy_logprobs=good, teacher_logprobs=good, distill_coef=1.0, keep=mask[0])
    with pytest.raises(NumericsError, match="rows is"):
        distill_mask(rows="group", correct=mask[:, 0], group_ids=ids)  # type: ignore[arg-type]
    with pytest.raises(NumericsError, match="step"):
        constant(-1, value=1.0)
    with pytest.raises(NumericsError, match="rise"):
        anneal(0, initial=1.0, decrement=-0.1, minimum=0.0)
    with pytest.raises(NumericsError, match="steps"):
        linear(0, start=0.0, end=1.0, steps=0)
