"""Supervised and preference losses: REDI, DPO, SimPO, symmetric, weighted targets, mixtures."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from ledger import differ, prove
from tabular import Tabular
from torch import Tensor

from rlkd.errors import NumericsError
from rlkd.objectives import (
    cross_entropy,
    dpo,
    ground_truth_weight,
    mixed_source_weights,
    per_sample_mixture,
    redi,
    reduce,
    sequence_logprobs,
    simpo,
)

FAMILY = "offline"
WORLD = Tabular()


def pairs() -> tuple[Tensor, Tensor, Tensor]:
    """Log-probabilities of three pairs of different lengths, all right rows first; masks; which rows are wrong."""
    logprobs = -torch.rand(6, 5, generator=torch.Generator().manual_seed(3), dtype=torch.float64) - 0.1
    mask = torch.arange(5)[None] < torch.tensor([5, 2, 3, 1, 4, 2])[:, None]
    return logprobs, mask, torch.arange(6) >= 3


def signs(rejected: Tensor) -> Tensor:
    return torch.tensor([0.8 if row else -1.0 for row in rejected.tolist()], dtype=torch.float64)


def test_redi_equals_the_papers_pair_form() -> None:
    """mean over pairs of -log p(y_w)/|y_w| + alpha log p(y_l)/|y_l|, with rows scattered over micro-batches."""
    logprobs, mask, rejected = pairs()
    means = [row[m].mean() for row, m in zip(logprobs, mask, strict=True)]
    want = torch.stack([-means[i] + 0.8 * means[i + 3] for i in range(3)]).mean()
    per_token = redi(policy_logprobs=logprobs.where(mask, math.nan), rejected=rejected)
    order = torch.tensor([4, 0, 2, 5, 3, 1])
    parts = [
        reduce(per_token[rows], mask[rows], kind="sequence", denominator=3.0)
        for rows in (order[:2], order[2:3], order[3:])
    ]
    prove(FAMILY, "redi", torch.stack(parts).sum()[None], want[None])


def test_redi_alpha_zero_is_length_normalised_sft() -> None:
    logprobs, mask, rejected = pairs()
    rows = redi(policy_logprobs=logprobs, rejected=rejected, rejected_weight=0.0)
    sft = cross_entropy(policy_logprobs=logprobs[:3])
    got = reduce(rows, mask, kind="sequence", denominator=3.0)
    prove(FAMILY, "redi, alpha 0", got[None], reduce(sft, mask[:3], kind="sequence", denominator=3.0)[None])


def test_redi_gradient_lowers_wrong_traces() -> None:
    logprobs, mask, rejected = pairs()
    logprobs.requires_grad_()
    loss = reduce(redi(policy_logprobs=logprobs, rejected=rejected), mask, kind="sequence", denominator=3.0)
    (gradient,) = torch.autograd.grad(loss, logprobs)
    weight = signs(rejected) / (3 * mask.sum(1))
    prove(FAMILY, "redi, gradient", gradient, weight[:, None].where(mask, 0.0))


def test_symmetric_is_the_small_beta_limit_of_dpo() -> None:
    """grad DPO / beta -> (grad log p(y_l) - grad log p(y_w)) / 2: the symmetric objective at half the step."""
    table = WORLD.table(0)
    logprobs = WORLD.logprobs(table)
    chosen, rejected = logprobs[:5].sum(1), logprobs[5:10].sum(1)
    beta = 1e-9
    loss = dpo(
        chosen=chosen,
        rejected=rejected,
        reference_chosen=torch.zeros_like(chosen),
        reference_rejected=torch.zeros_like(chosen),
        inverse_temperature=beta,
    ).sum()
    rows = redi(policy_logprobs=logprobs[:10], rejected=torch.arange(10) >= 5, rejected_weight=1.0)
    symmetric = rows.where(WORLD.mask[:10], 0.0).sum()
    prove("limits", "DPO to symmetric", WORLD.gradient(table, loss) / beta, WORLD.gradient(table, symmetric) / 2, 1e-7)


def test_reweighting_spares_unlikely_traces() -> None:
    logprobs, mask, rejected = pairs()
    logprobs.requires_grad_()
    setting: dict[str, Any] = {"policy_logprobs": logprobs, "rejected": rejected, "response_mask": mask}
    plain, weighted = redi(**setting), redi(**setting, reweighting=2.0)
    mean = sequence_logprobs(policy_logprobs=logprobs, response_mask=mask, length_normalised=True)
    factor = (2.0 * mean).exp().where(rejected, 1.0)
    prove(FAMILY, "redi, reweighting", weighted, plain * factor[:, None])
    got = torch.autograd.grad(weighted.where(mask, 0.0).sum(), logprobs)[0]
    want = (signs(rejected) * factor)[:, None].where(mask, 0.0)
    prove(FAMILY, "redi, reweighting is a weight", got, want)


def test_sequence_logprobs() -> None:
    logprobs = torch.tensor([[-1.0, -2.0, math.nan], [math.nan, math.nan, math.nan]])
    mask = torch.tensor([[True, True, False], [False, False, False]])
    total = sequence_logprobs(policy_logprobs=logprobs, response_mask=mask, length_normalised=False)
    mean = sequence_logprobs(policy_logprobs=logprobs, response_mask=mask, length_normalised=True)
    assert (total.tolist(), mean.tolist()) == ([-3.0, 0.0], [-1.5, 0.0])


def test_dpo_by_hand() -> None:
    inputs = {
        "chosen": torch.tensor([-2.0, -9.0]).double().requires_grad_(),
        "rejected": torch.tensor([-3.0, -1.0]).double().requires_grad_(),
        "reference_chosen": torch.tensor([-2.5, -8.0]).double(),
        "reference_rejected": torch.tensor([-2.0, -2.0]).double(),
    }
    margins = [0.5 * ((-2 + 2.5) - (-3 + 2)), 0.5 * ((-9 + 8) - (-1 + 2))]
    want = torch.tensor([math.log1p(math.exp(-m)) for m in margins], dtype=torch.float64)
    loss = dpo(**inputs, inverse_temperature=0.5)
    prove(FAMILY, "dpo", loss, want)
    slopes = torch.tensor([-0.5 / (1 + math.exp(m)) for m in margins], dtype=torch.float64)
    got = torch.autograd.grad(loss.sum(), [inputs["chosen"], inputs["rejected"]])
    prove(FAMILY, "dpo, gradient", torch.stack(got), torch.stack([slopes, -slopes]))


def test_simpo_by_hand() -> None:
    loss = simpo(
        chosen=torch.tensor([-0.2], dtype=torch.float64),
        rejected=torch.tensor([-0.7], dtype=torch.float64),
        inverse_temperature=2.0,
        margin=1.5,
    )
    prove(FAMILY, "simpo", loss, torch.tensor([math.log1p(math.exp(-(2 * 0.5 - 1.5)))], dtype=torch.float64))


# --- targets ---


def test_cross_entropy_on_teacher_samples_is_forward_kl() -> None:
    """Sequence-level distillation: SFT on teacher samples has the gradient of KL(teacher || policy) of sequences."""
    table, teacher = WORLD.table(0), WORLD.table(1).detach()
    loss = cross_entropy(policy_logprobs=WORLD.logprobs(table))
    fixed = WORLD.probabilities(teacher)
    sequence = (fixed * (fixed.log() - WORLD.logprobs(table).sum(1))).sum()
    prove(
        FAMILY, "SFT on teacher samples", WORLD.expected_gradient(table, loss, teacher), WORLD.gradient(table, sequence)
    )


def test_weighted_rows() -> None:
    logprobs, _, _ = pairs()
    weights = torch.tensor([0.0, 1.0, 2.0, 0.5, 1.0, 3.0], dtype=torch.float64)
    got = cross_entropy(policy_logprobs=logprobs, weights=weights)
    prove(FAMILY, "weighted SFT", got, -weights[:, None] * logprobs)


def test_per_sample_mixture() -> None:
    first, second = torch.ones(2, 3, dtype=torch.float64), torch.full((2, 3), 5.0, dtype=torch.float64)
    got = per_sample_mixture(distillation=first, supervised=second, weights=torch.tensor([0.25, 1.0]).double())
    prove(FAMILY, "per-sample mixture", got, torch.tensor([[4.0] * 3, [1.0] * 3], dtype=torch.float64))


@pytest.mark.parametrize("count", [1, 2, 7])
def test_mixed_source_weights_give_the_share(count: int) -> None:
    on_policy = torch.arange(8) < count
    weights = mixed_source_weights(on_policy=on_policy, on_policy_share=0.3)
    assert weights[on_policy].sum().item() / 8 == pytest.approx(0.3)
    assert weights[~on_policy].sum().item() / 8 == pytest.approx(0.7)


def test_mixed_source_weights_at_the_ends() -> None:
    rows = torch.tensor([True, False])
    assert mixed_source_weights(on_policy=rows, on_policy_share=1.0).tolist() == [2.0, 0.0]
    assert mixed_source_weights(on_policy=rows, on_policy_share=0.0).tolist() == [0.0, 2.0]
    assert mixed_source_weights(on_policy=torch.tensor([True, True]), on_policy_share=0.5).tolist() == [0.5, 0.5]


def test_ground_truth_weight_minimises_validation_error() -> None:
    y, g, h = (torch.randn(50, generator=torch.Generator().manual_seed(i), dtype=torch.float64) for i in range(3))
    y = 0.4 * h + 0.6 * g + 0.05 * y
    best = ground_truth_weight(target=y, self_distilled=g, supervised=h, floor=0.1)
    errors = [(y - (a * h + (1 - a) * g)).square().sum() for a in (float(best) - 1e-4, float(best), float(best) + 1e-4)]
    assert errors[1] < min(errors[0], errors[2])
    assert 0.3 < best < 0.5
    assert ground_truth_weight(target=g, self_distilled=g, supervised=h, floor=0.1) == 0.1
    assert ground_truth_weight(target=2 * h - g, self_distilled=g, supervised=h, floor=0.1) == 1.0
    assert ground_truth_weight(target=y, self_distilled=h, supervised=h, floor=0.1) == 1.0


def test_self_distillation_fixed_point() -> None:
    """Kernel ridge: f <- H (a y + (1 - a) f) tends to the ridge solution with regularisation / a; a = 0 collapses."""
    points = torch.linspace(0, 1, 6, dtype=torch.float64)
    kernel = torch.exp(-((points[:, None] - points[None]) ** 2) / 0.1)
    y, ridge, identity = points.sin(), 0.1, torch.eye(6, dtype=torch.float64)
    smoother = kernel @ torch.linalg.inv(kernel + ridge * identity)
    for a in (0.35, 1.0):
        f = y
        for _ in range(400):
            f = smoother @ (a * y + (1 - a) * f)
        prove(FAMILY, f"self-distillation, a={a}", f, kernel @ torch.linalg.solve(kernel + ridge / a * identity, y))
    f = y
    for _ in range(4000):
        f = smoother @ f
    assert f.abs().max() < 0.05


@pytest.mark.usefixtures("unchecked")
def test_bad_offline_input_is_refused() -> None:
    logprobs, mask, rejected = pairs()
    one = torch.zeros(2)
    for weight in (-0.1, 1.1, math.nan):
        with pytest.raises(NumericsError, match="rejected_weight"):
            redi(policy_logprobs=logprobs, rejected=rejected, rejected_weight=weight)
    with pytest.raises(NumericsError, match="response_mask"):
        redi(policy_logprobs=logprobs, rejected=rejected, reweighting=1.0)
    with pytest.raises(NumericsError, match="reweighting"):
        redi(policy_logprobs=logprobs, rejected=rejected, reweighting=-1.0, response_mask=mask)
    with pytest.raises(NumericsError, match="one entry a row"):
        redi(policy_logprobs=logprobs, rejected=rejected[:2])
    for weights in (torch.tensor([-1.0] * 6), torch.tensor([math.inf] * 6)):
        with pytest.raises(NumericsError, match="weights span"):
            cross_entropy(policy_logprobs=logprobs, weights=weights)
    with pytest.raises(NumericsError, match="weights span"):
        per_sample_mixture(distillation=logprobs, supervised=logprobs, weights=torch.full((6,), 1.5))
    with pytest.raises(NumericsError, match="inverse_temperature"):
        dpo(chosen=one, rejected=one, reference_chosen=one, reference_rejected=one, inverse_temperature=0.0)
    with pytest.raises(NumericsError, match="same shape"):
        dpo(chosen=one, rejected=one[:1], reference_chosen=one, reference_rejected=one, inverse_temperature=0.1)
    with pytest.raises(NumericsError, match="margin"):
        simpo(chosen=one, rejected=one, inverse_temperature=1.0, margin=-1.0)
    with pytest.raises(NumericsError, match="on_policy_share"):
        mixed_source_weights(on_policy=rejected, on_policy_share=1.5)
    with pytest.raises(NumericsError, match="floor"):
        ground_truth_weight(target=one, self_distilled=one, supervised=one, floor=0.0)


def test_dpo_differs_with_the_reference() -> None:
    chosen, rejected = torch.tensor([-1.0]).requires_grad_(), torch.tensor([-2.0])
    losses = [
        dpo(chosen=chosen, rejected=rejected, reference_chosen=r, reference_rejected=rejected, inverse_temperature=1.0)
        for r in (torch.tensor([-1.0]), torch.tensor([-3.0]))
    ]
    differ(losses[0], losses[1])
