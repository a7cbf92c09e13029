"""Policy-gradient losses by enumeration: the expected gradient over all sequences is that of the expected score."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from ledger import prove
from objective_cases import CREDIT, SCORES, WORLD, expected_score_gradient, one_token_world, pair, row
from tabular import groups
from torch import Tensor

from rlkd.advantages import group_advantages
from rlkd.errors import NumericsError
from rlkd.objectives import cispo, clipped_surrogate, gspo, log_ratio, reinforce

FAMILY = "policy gradient"


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


@pytest.mark.parametrize("objective", [clipped_surrogate, cispo])
def test_infinite_clip_is_importance_sampling(objective: Callable[..., Tensor]) -> None:
    """For one token the ratio corrects for any sampling distribution: the gradient is exact off-policy too."""
    world, scores = one_token_world()
    table, rollout = world.table(3), world.table(4).detach()
    loss = objective(
        policy_logprobs=world.logprobs(table),
        rollout_logprobs=world.logprobs(rollout),
        advantages=scores[:, None],
        clip_low=math.inf,
        clip_high=math.inf,
    )
    want = world.gradient(table, (world.probabilities(table) * scores).sum())
    prove(FAMILY, f"{objective.__name__}, off-policy", -world.expected_gradient(table, loss, rollout), want)


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


def test_gspo_credits_each_token_with_its_own_advantage() -> None:
    """Credit that differs along a row (distillation): slope s A_t at token t, not the row's mean at every token."""
    logprobs = row(-1.0, -2.0, -0.5).requires_grad_()
    gap, credit = row(0.1, -0.2, 0.25), row(2.0, -1.0, 0.5)
    loss = gspo(
        policy_logprobs=logprobs,
        rollout_logprobs=logprobs.detach() - gap,
        advantages=credit,
        response_mask=torch.ones(1, 3, dtype=torch.bool),
        clip_low=0.2,
        clip_high=0.2,
    )
    ratio = math.exp(0.05)
    prove(FAMILY, "gspo, credit along a row", loss, -ratio * credit)
    prove(FAMILY, "gspo, slopes along a row", torch.autograd.grad(loss.sum(), logprobs)[0], -ratio * credit)


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


def test_only_the_policy_is_trained() -> None:
    """Sampler and credit are data: both ask for a gradient and get none."""
    policy, other, credit = (row(-1.0, -2.0, -0.5).requires_grad_() for _ in range(3))
    clip: dict[str, Any] = {"clip_low": 0.2, "clip_high": 0.2}
    sampled: dict[str, Any] = {"policy_logprobs": policy, "rollout_logprobs": other - 0.1}
    losses = [
        reinforce(policy_logprobs=policy, advantages=credit),
        clipped_surrogate(**sampled, advantages=credit, **clip),
        cispo(**sampled, advantages=credit, **clip),
        gspo(**sampled, advantages=credit, response_mask=torch.ones(1, 3, dtype=torch.bool), **clip),
    ]
    for loss in losses:
        got = torch.autograd.grad(loss.sum(), [policy, other, credit], allow_unused=True)
        assert got[0] is not None
        assert got[0].abs().max() > 0
        assert got[1] is got[2] is None


def test_surrogate_of_half_precision_is_computed_in_float32() -> None:
    inputs = {name: tensor.bfloat16() for name, tensor in pair()[2].items()}
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
def test_bad_surrogates_are_refused() -> None:
    good, short = torch.zeros(2, 3), torch.zeros(2, 1)
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
