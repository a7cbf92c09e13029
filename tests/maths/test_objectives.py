"""Objectives proven by enumeration: the expected gradient over all sequences is that of the stated objective."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from ledger import differ, prove
from tabular import Tabular, groups
from torch import Tensor

from rlkd.advantages import group_advantages
from rlkd.divergences import forward_kl, reverse_kl
from rlkd.errors import NumericsError
from rlkd.objectives import (
    additive_advantage,
    anneal,
    cispo,
    clipped_surrogate,
    constant,
    distill_mask,
    forward_kl_k3,
    gspo,
    hard_switch,
    k1_value,
    kdrl_joint,
    linear,
    log_ratio,
    loss_estimator,
    masked_importance_weight,
    reinforce,
    reverse_kl_k2,
    truncated_importance_weight,
)

WORLD = Tabular()
SCORES = torch.linspace(-1, 2, len(WORLD.ids), dtype=torch.float64).cos()
CREDIT = SCORES[:, None].expand_as(WORLD.mask)
FAMILY = "objectives"


def expected_score_gradient(table: Tensor) -> Tensor:
    return WORLD.gradient(table, (WORLD.probabilities(table) * SCORES).sum())


# --- policy gradient ---


def test_reinforce_gradient_is_exact() -> None:
    table = WORLD.table(0)
    loss = reinforce(policy_logprobs=WORLD.logprobs(table), advantages=CREDIT)
    prove(FAMILY, "reinforce", -WORLD.expected_gradient(table, loss), expected_score_gradient(table))


def group_gradient(table: Tensor, size: int, baseline: str) -> Tensor:
    """Expected gradient of the mean REINFORCE loss over every ordered group of ``size`` sequences."""
    members = groups(WORLD, size)
    weight = WORLD.probabilities(table).detach()[members].prod(1)
    ids = torch.arange(len(members)).repeat_interleave(size)
    credit = group_advantages(scores=SCORES[members].flatten(), group_ids=ids, baseline=baseline)  # type: ignore[arg-type]
    logprobs = WORLD.logprobs(table)[members.flatten()]
    loss = reinforce(policy_logprobs=logprobs, advantages=credit[:, None].expand_as(logprobs))
    per_group = loss.sum(1).reshape(-1, size).mean(1)
    return WORLD.gradient(table, (weight * per_group).sum())


@pytest.mark.parametrize("size", [2, 3])
def test_rloo_gradient_is_exact(size: int) -> None:
    table = WORLD.table(1)
    prove(
        FAMILY,
        f"leave-one-out, G={size}",
        -group_gradient(table, size, "leave_one_out"),
        expected_score_gradient(table),
    )


@pytest.mark.parametrize("size", [2, 3])
def test_mean_baseline_shrinks_by_one_minus_one_over_n(size: int) -> None:
    """The bias of Dr.GRPO's group mean, stated as such: a factor, and nothing else."""
    table = WORLD.table(1)
    want = (1 - 1 / size) * expected_score_gradient(table)
    prove(FAMILY, f"group mean, G={size}", -group_gradient(table, size, "mean"), want)


@pytest.mark.parametrize("clip", [(0.2, 0.2), (0.2, 0.28), (math.inf, math.inf)])
def test_surrogate_gradient_is_policy_gradient_at_ratio_one(clip: tuple[float, float]) -> None:
    table = WORLD.table(2)
    logprobs = WORLD.logprobs(table)
    loss = clipped_surrogate(
        policy_logprobs=logprobs,
        rollout_logprobs=logprobs.detach(),
        advantages=CREDIT,
        clip_low=clip[0],
        clip_high=clip[1],
    )
    prove(FAMILY, "clipped_surrogate, on-policy", -WORLD.expected_gradient(table, loss), expected_score_gradient(table))


def one_token_world() -> tuple[Tabular, Tensor]:
    world = Tabular(vocabulary=5, tokens=1)
    return world, torch.linspace(-2, 2, 5, dtype=torch.float64).exp()


def test_infinite_clip_is_importance_sampling() -> None:
    """For one token the ratio corrects for any sampling distribution: the gradient is exact off-policy too."""
    world, scores = one_token_world()
    table, rollout = world.table(3), world.table(4).detach()
    loss = clipped_surrogate(
        policy_logprobs=world.logprobs(table),
        rollout_logprobs=world.logprobs(rollout),
        advantages=scores[:, None],
        clip_low=math.inf,
        clip_high=math.inf,
    )
    want = world.gradient(table, (world.probabilities(table) * scores).sum())
    prove(FAMILY, "clipped_surrogate, off-policy", -world.expected_gradient(table, loss, rollout), want)


def row(*values: float) -> Tensor:
    return torch.tensor([values], dtype=torch.float64)


def test_surrogate_clips_each_side() -> None:
    """Ratios 0.5, 1, 2 with clip [0.8, 1.28], good and bad tokens: value and gradient of each case by hand."""
    ratios = row(0.5, 1.0, 2.0, 0.5, 1.0, 2.0)
    logprobs = ratios.log().requires_grad_()
    credit = row(3.0, 3.0, 3.0, -3.0, -3.0, -3.0)
    loss = clipped_surrogate(
        policy_logprobs=logprobs,
        rollout_logprobs=torch.zeros_like(ratios),
        advantages=credit,
        clip_low=0.2,
        clip_high=0.28,
    )
    want = row(-1.5, -3.0, -3.84, 2.4, 3.0, 6.0)
    prove(FAMILY, "clipped_surrogate, values", loss, want)
    (gradient,) = torch.autograd.grad(loss.sum(), logprobs)
    # the gradient of ratio * A in log p is ratio * A; it is stopped where more of the same would leave the interval
    prove(FAMILY, "clipped_surrogate, slopes", gradient, row(-1.5, -3.0, 0.0, 0.0, 3.0, 6.0))


def test_dual_clip_bounds_bad_tokens() -> None:
    logprobs = row(10.0, 10.0, 2.0).log().requires_grad_()
    loss = clipped_surrogate(
        policy_logprobs=logprobs,
        rollout_logprobs=torch.zeros(1, 3, dtype=torch.float64),
        advantages=row(-1.0, 1.0, -1.0),
        clip_low=0.2,
        clip_high=0.2,
        dual_clip=3.0,
    )
    prove(FAMILY, "dual clip", loss, row(3.0, -1.2, 2.0))
    prove(FAMILY, "dual clip, slopes", torch.autograd.grad(loss.sum(), logprobs)[0], row(0.0, 0.0, 2.0))


def test_log_ratio_is_bounded() -> None:
    """Ratios that would overflow give a finite loss and no gradient; inside the bound the difference is exact."""
    logprobs = row(500.0, -500.0, 1.5).requires_grad_()
    ratio = log_ratio(policy_logprobs=logprobs, rollout_logprobs=row(0.0, 0.0, 1.0))
    assert ratio.tolist() == [[20.0, -20.0, 0.5]]
    (gradient,) = torch.autograd.grad(ratio.exp().sum(), logprobs)
    prove(FAMILY, "log_ratio", gradient, row(0.0, 0.0, math.exp(0.5)))


def test_cispo_without_clip_is_importance_sampling() -> None:
    world, scores = one_token_world()
    table, rollout = world.table(3), world.table(4).detach()
    loss = cispo(
        policy_logprobs=world.logprobs(table),
        rollout_logprobs=world.logprobs(rollout),
        advantages=scores[:, None],
        clip_low=math.inf,
        clip_high=math.inf,
    )
    want = world.gradient(table, (world.probabilities(table) * scores).sum())
    prove(FAMILY, "cispo, off-policy", -world.expected_gradient(table, loss, rollout), want)


def test_cispo_keeps_every_token() -> None:
    """Weights 0.5, 1, 2 clipped to [0.8, 1.28]; unlike PPO no token loses its gradient."""
    logprobs = row(0.5, 1.0, 2.0).log().requires_grad_()
    loss = cispo(
        policy_logprobs=logprobs,
        rollout_logprobs=torch.zeros(1, 3, dtype=torch.float64),
        advantages=row(3.0, -3.0, 3.0),
        clip_low=0.2,
        clip_high=0.28,
    )
    (gradient,) = torch.autograd.grad(loss.sum(), logprobs)
    prove(FAMILY, "cispo, slopes", gradient, row(-0.8 * 3, 1.0 * 3, -1.28 * 3))


def test_gspo_gradient_is_that_of_the_sequence_ratio() -> None:
    """Mean over rows of -(geometric-mean ratio) * score, written out; clipped rows give nothing."""
    table, rollout = WORLD.table(5), WORLD.table(6).detach()
    logprobs, old = WORLD.logprobs(table), WORLD.logprobs(rollout)
    lengths = WORLD.mask.sum(1)
    ratio = ((logprobs - old).sum(1) / lengths).exp()
    clipped = torch.where(SCORES > 0, ratio > 1.3, ratio < 0.9)
    assert 0 < int(clipped.sum()) < len(clipped)
    want = WORLD.gradient(table, -(ratio * SCORES)[~clipped].sum())
    loss = gspo(
        policy_logprobs=logprobs,
        rollout_logprobs=old.where(WORLD.mask, 7.0),  # what stands in padding is not part of the ratio
        advantages=CREDIT,
        response_mask=WORLD.mask,
        clip_low=0.1,
        clip_high=0.3,
    )
    per_row = loss.where(WORLD.mask, 0.0).sum(1) / lengths
    prove(FAMILY, "gspo", WORLD.gradient(table, per_row.sum()), want)


def test_gspo_is_token_surrogate_for_one_token() -> None:
    world, scores = one_token_world()
    table, rollout = world.table(3), world.table(4).detach()
    inputs: dict[str, Any] = {
        "policy_logprobs": world.logprobs(table),
        "rollout_logprobs": world.logprobs(rollout),
        "advantages": scores[:, None],
    }
    sequence = gspo(**inputs, response_mask=world.mask, clip_low=0.2, clip_high=0.2)
    prove(FAMILY, "gspo, one token", sequence, clipped_surrogate(**inputs, clip_low=0.2, clip_high=0.2))


# --- sampled KL estimators ---


def local_gradients(table: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients of the expected reverse and forward KL at the policy's own prefixes."""
    fixed = WORLD.logits(teacher)
    reverse = WORLD.prefix_divergence(table, lambda z: reverse_kl(policy_logits=z, teacher_logits=fixed))
    forward = WORLD.prefix_divergence(table, lambda z: forward_kl(policy_logits=z, teacher_logits=fixed))
    return WORLD.gradient(table, reverse), WORLD.gradient(table, forward)


def pair(seed: int = 7) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    table, teacher = WORLD.table(seed), WORLD.table(seed + 100).detach()
    return table, teacher, {"policy_logprobs": WORLD.logprobs(table), "teacher_logprobs": WORLD.logprobs(teacher)}


def test_k2_gradient_is_reverse_kl() -> None:
    table, teacher, inputs = pair()
    got = WORLD.expected_gradient(table, reverse_kl_k2(**inputs))
    prove(FAMILY, "k2", got, local_gradients(table, teacher)[0])


def test_k3_gradient_is_forward_kl() -> None:
    table, teacher, inputs = pair()
    got = WORLD.expected_gradient(table, forward_kl_k3(**inputs))
    prove(FAMILY, "k3", got, local_gradients(table, teacher)[1])
    differ(got, local_gradients(table, teacher)[0])


def test_k1_as_a_loss_has_no_gradient() -> None:
    """Why k1 is refused: back-propagated, the teacher drops out and the expectation is zero."""
    table, _, inputs = pair()
    leaked = inputs["policy_logprobs"] - inputs["teacher_logprobs"]
    assert WORLD.expected_gradient(table, leaked).abs().max() < 1e-15
    assert not k1_value(**inputs).requires_grad


def expected_value(table: Tensor, values: Tensor) -> Tensor:
    return (WORLD.probabilities(table)[:, None] * values.where(WORLD.mask, 0.0)).sum()[None]


@pytest.mark.parametrize("estimator", [k1_value, forward_kl_k3])
def test_value_is_reverse_kl(estimator: object) -> None:
    table, teacher, inputs = pair()
    fixed = WORLD.logits(teacher)
    want = WORLD.prefix_divergence(table, lambda z: reverse_kl(policy_logits=z, teacher_logits=fixed))[None]
    got = expected_value(table, estimator(**inputs))  # type: ignore[operator]
    prove(FAMILY, f"{estimator.__name__}, value", got, want)  # type: ignore[attr-defined]


def test_k2_is_token_local() -> None:
    """The gradient of sequence KL also credits a token for what it makes of later ones; k2 leaves that out."""
    table, _, inputs = pair()
    logprobs, teacher_logprobs = inputs["policy_logprobs"], inputs["teacher_logprobs"]
    sequence = (WORLD.probabilities(table) * (logprobs - teacher_logprobs).sum(1)).sum()
    differ(WORLD.expected_gradient(table, reverse_kl_k2(**inputs)), WORLD.gradient(table, sequence))


@pytest.mark.parametrize("estimator", [reverse_kl_k2, forward_kl_k3])
def test_teacher_swap_changes_the_gradient(estimator: object) -> None:
    table, _, inputs = pair()
    other = WORLD.logprobs(WORLD.table(55).detach())
    first = WORLD.expected_gradient(table, estimator(**inputs))  # type: ignore[operator]
    second = WORLD.expected_gradient(table, estimator(**(inputs | {"teacher_logprobs": other})))  # type: ignore[operator]
    differ(first, second, at_least=1e-2)


@pytest.mark.parametrize("estimator", [reverse_kl_k2, forward_kl_k3])
def test_teacher_equal_to_policy_is_exactly_zero(estimator: object) -> None:
    """Identical context, identical weights: self-distillation is a no-op, loss and gradient."""
    table, _, inputs = pair()
    loss = estimator(**(inputs | {"teacher_logprobs": inputs["policy_logprobs"]}))  # type: ignore[operator]
    assert loss.abs().max() == 0
    assert WORLD.expected_gradient(table, loss).abs().max() == 0


def test_k1_is_refused_as_a_loss_under_every_name() -> None:
    for name in ("k1", "K1", " kl ", "log_ratio"):
        with pytest.raises(NumericsError, match="teacher drops out"):
            loss_estimator(name)
    assert loss_estimator("K2") is loss_estimator("mse") is loss_estimator("reverse_kl_k2")
    assert loss_estimator("k3") is loss_estimator("low_var_kl")
    with pytest.raises(NumericsError, match="did you mean 'k2'"):
        loss_estimator("k22")


# --- KDRL ---


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


# --- importance correction ---


def gap(world: Tabular) -> dict[str, Tensor]:
    return {
        "policy_logprobs": world.logprobs(world.table(8)).detach(),
        "rollout_logprobs": world.logprobs(world.table(9)).detach(),
        "response_mask": world.mask,
    }


def test_untruncated_sequence_weight_is_unbiased() -> None:
    """Sampling from other weights, the sequence-level weight restores the policy's expectation exactly."""
    inputs = gap(WORLD)
    weight = truncated_importance_weight(**inputs, cap=math.inf, level="sequence")[:, 0]
    rollout_probability = inputs["rollout_logprobs"].sum(1).exp()
    want = WORLD.probabilities(WORLD.table(8)) * SCORES
    prove(FAMILY, "sequence importance weight", rollout_probability * weight * SCORES, want.detach())


@pytest.mark.parametrize("level", ["token", "sequence", "geometric"])
def test_truncated_weight_is_capped(level: str) -> None:
    inputs = gap(WORLD)
    free = truncated_importance_weight(**inputs, cap=math.inf, level=level)  # type: ignore[arg-type]
    capped = truncated_importance_weight(**inputs, cap=1.2, level=level)  # type: ignore[arg-type]
    assert float(free.max()) > 1.2
    prove(FAMILY, f"truncated weight, {level}", capped, free.clamp(max=1.2))
    difference = inputs["policy_logprobs"] - inputs["rollout_logprobs"]
    want = {
        "token": difference,
        "sequence": difference.sum(1, keepdim=True).expand_as(difference),
        "geometric": (difference.sum(1) / WORLD.mask.sum(1))[:, None].expand_as(difference),
    }[level].exp()
    prove(FAMILY, f"ratio, {level}", free, want.where(WORLD.mask, 1.0))


def test_padding_does_not_enter_a_sequence_ratio() -> None:
    clean = gap(WORLD)
    dirty = clean | {"rollout_logprobs": clean["rollout_logprobs"].where(WORLD.mask, 3.0)}
    for level in ("sequence", "geometric"):
        got, want = (truncated_importance_weight(**g, cap=math.inf, level=level) for g in (dirty, clean))  # type: ignore[arg-type]
        prove(FAMILY, f"{level} ratio, padding", got, want)


def test_masked_weight_drops_outliers() -> None:
    ratios = row(0.3, 0.5, 1.0, 2.0, 2.5)
    weight = masked_importance_weight(
        policy_logprobs=ratios.log(),
        rollout_logprobs=torch.zeros_like(ratios),
        response_mask=torch.tensor([[True, True, True, True, False]]),
        low=0.4,
        high=1.9,
    )
    prove(FAMILY, "masked weight", weight, row(0.0, 0.5, 1.0, 0.0, 1.0))


def test_sequence_masked_weight_drops_rows() -> None:
    ratios = torch.tensor([[1.5, 1.5], [1.5, 1 / 1.5]], dtype=torch.float64)
    inputs = {
        "policy_logprobs": ratios.log(),
        "rollout_logprobs": torch.zeros_like(ratios),
        "response_mask": torch.ones(2, 2, dtype=torch.bool),
    }
    weight = masked_importance_weight(**inputs, low=0.5, high=2.0, level="sequence")
    prove(FAMILY, "masked weight, sequence", weight, torch.tensor([[0.0, 0.0], [1.0, 1.0]], dtype=torch.float64))


def test_extreme_gaps_stay_finite() -> None:
    inputs = {
        "policy_logprobs": row(900.0, -900.0),
        "rollout_logprobs": row(0.0, 0.0),
        "response_mask": torch.ones(1, 2, dtype=torch.bool),
    }
    for level in ("token", "sequence", "geometric"):
        assert truncated_importance_weight(**inputs, cap=math.inf, level=level).isfinite().all()  # type: ignore[arg-type]


# --- who is trained ---


def test_only_the_policy_is_trained() -> None:
    """Teacher, sampler and credit are data: every other input asks for a gradient and gets none."""
    policy, other, credit = (row(-1.0, -2.0, -0.5).requires_grad_() for _ in range(3))
    clip: dict[str, Any] = {"clip_low": 0.2, "clip_high": 0.2}
    sampled: dict[str, Any] = {"policy_logprobs": policy, "rollout_logprobs": other - 0.1}
    taught: dict[str, Any] = {"policy_logprobs": policy, "teacher_logprobs": other - 0.1}
    losses = [
        reinforce(policy_logprobs=policy, advantages=credit),
        clipped_surrogate(**sampled, advantages=credit, **clip),
        cispo(**sampled, advantages=credit, **clip),
        gspo(**sampled, advantages=credit, response_mask=torch.ones(1, 3, dtype=torch.bool), **clip),
        reverse_kl_k2(**taught),
        forward_kl_k3(**taught),
        kdrl_joint(policy_loss=reinforce(policy_logprobs=policy, advantages=credit), **taught, distill_coef=1.0),
    ]
    for loss in losses:
        got = torch.autograd.grad(loss.sum(), [policy, other, credit], allow_unused=True)
        assert got[0] is not None
        assert got[0].abs().max() > 0
        assert got[1] is got[2] is None
    assert not additive_advantage(advantages=credit, **taught, distill_coef=1.0).requires_grad


# --- bad input ---


def test_half_precision_is_computed_in_float32() -> None:
    inputs = {name: tensor.bfloat16() for name, tensor in pair()[2].items()}
    exact = {name: tensor.float() for name, tensor in inputs.items()}
    for function in (reverse_kl_k2, forward_kl_k3, k1_value):
        assert function(**inputs).dtype == torch.float32
        assert function(**inputs).equal(function(**exact))
    policy, rollout = inputs["policy_logprobs"], inputs["teacher_logprobs"]
    half = clipped_surrogate(
        policy_logprobs=policy, rollout_logprobs=rollout, advantages=CREDIT.bfloat16(), clip_low=0.2, clip_high=0.2
    )
    full = clipped_surrogate(
        policy_logprobs=policy.float(),
        rollout_logprobs=rollout.float(),
        advantages=CREDIT.bfloat16().float(),
        clip_low=0.2,
        clip_high=0.2,
    )
    assert half.equal(full)


@pytest.mark.parametrize("junk", [math.nan, math.inf, -1e9])
def test_non_finite_credit_is_not_hidden(junk: float) -> None:
    """A documented limit: credit that is not finite at a trained token stays visible in the loss."""
    loss = reinforce(policy_logprobs=row(-1.0), advantages=row(junk))
    assert loss.isfinite().all() == math.isfinite(junk)


@pytest.mark.usefixtures("unchecked")
def test_bad_input_is_refused() -> None:
    good, short = torch.zeros(2, 3), torch.zeros(2, 1)
    mask = torch.ones(2, 3, dtype=torch.bool)
    ids = torch.zeros(2, dtype=torch.long)
    surrogate: dict[str, Any] = {"policy_logprobs": good, "rollout_logprobs": good, "advantages": good}
    with pytest.raises(NumericsError, match="same shape"):
        clipped_surrogate(**(surrogate | {"advantages": short}), clip_low=0.2, clip_high=0.2)
    with pytest.raises(NumericsError, match="same shape"):
        clipped_surrogate(**(surrogate | {"rollout_logprobs": short}), clip_low=0.2, clip_high=0.2)
    for low, high in ((-0.1, 0.2), (0.2, math.nan)):
        with pytest.raises(NumericsError, match="clip_low"):
            clipped_surrogate(**surrogate, clip_low=low, clip_high=high)
    with pytest.raises(NumericsError, match="dual_clip"):
        clipped_surrogate(**surrogate, clip_low=0.2, clip_high=0.2, dual_clip=1.0)
    with pytest.raises(NumericsError, match=r"torch\.bool"):
        gspo(**surrogate, response_mask=good, clip_low=0.2, clip_high=0.2)
    with pytest.raises(NumericsError, match="same shape"):
        reverse_kl_k2(policy_logprobs=good, teacher_logprobs=short)
    with pytest.raises(NumericsError, match="distill_coef"):
        kdrl_joint(policy_loss=good, policy_logprobs=good, teacher_logprobs=good, distill_coef=-1.0)
    with pytest.raises(NumericsError, match="one entry a row"):
        additive_advantage(advantages=good, policy_logprobs=good, teacher_logprobs=good, distill_coef=1.0, keep=mask[0])
    with pytest.raises(NumericsError, match="rows is"):
        distill_mask(rows="group", correct=mask[:, 0], group_ids=ids)  # type: ignore[arg-type]
    with pytest.raises(NumericsError, match="cap"):
        truncated_importance_weight(policy_logprobs=good, rollout_logprobs=good, response_mask=mask, cap=0.0)
    with pytest.raises(NumericsError, match="must hold 1"):
        masked_importance_weight(policy_logprobs=good, rollout_logprobs=good, response_mask=mask, low=1.1, high=2.0)
    with pytest.raises(NumericsError, match="level"):
        truncated_importance_weight(
            policy_logprobs=good,
            rollout_logprobs=good,
            response_mask=mask,
            cap=2.0,
            level="row",  # type: ignore[arg-type]
        )
    with pytest.raises(NumericsError, match="step"):
        constant(-1, value=1.0)
    with pytest.raises(NumericsError, match="rise"):
        anneal(0, initial=1.0, decrement=-0.1, minimum=0.0)
    with pytest.raises(NumericsError, match="steps"):
        linear(0, start=0.0, end=1.0, steps=0)
