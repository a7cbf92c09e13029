"""Weights for the gap between the engine that sampled and the policy that trains."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from ledger import prove
from objective_cases import SCORES, WORLD, row
from tabular import Tabular
from torch import Tensor

from rlkd.errors import NumericsError
from rlkd.objectives import masked_importance_weight, truncated_importance_weight

FAMILY = "importance"


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


def test_an_exact_divergence_needs_the_weight_of_its_prefix() -> None:
    """D_t is already an average over token t: its own ratio changes nothing in expectation, its prefix's does."""
    inputs = gap(WORLD)
    policy, teacher = (WORLD.logits(WORLD.table(seed)).detach().log_softmax(-1) for seed in (8, 10))
    exact = (teacher.exp() * (teacher - policy)).sum(-1).where(WORLD.mask, 0.0)
    sampled_by = inputs["rollout_logprobs"].sum(1).exp()[:, None]
    want = (inputs["policy_logprobs"].sum(1).exp()[:, None] * exact).sum()
    found = {
        level: (sampled_by * exact * truncated_importance_weight(**inputs, cap=math.inf, level=level)).sum()  # type: ignore[arg-type]
        for level in ("token", "prefix")
    }
    prove(FAMILY, "prefix importance weight", found["prefix"], want)
    prove(FAMILY, "token weight of an exact divergence is idle", found["token"], (sampled_by * exact).sum())
    assert abs(float(found["token"] - want)) > 1e-2


@pytest.mark.parametrize("level", ["token", "sequence", "geometric", "prefix"])
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
        "prefix": torch.nn.functional.pad(difference.cumsum(1)[:, :-1], (1, 0)),
    }[level].exp()
    prove(FAMILY, f"ratio, {level}", free, want.where(WORLD.mask, 1.0))


def test_padding_does_not_enter_a_sequence_ratio() -> None:
    clean = gap(WORLD)
    dirty = clean | {"rollout_logprobs": clean["rollout_logprobs"].where(WORLD.mask, 3.0)}
    for level in ("sequence", "geometric", "prefix"):
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


def test_nan_is_not_taken_for_an_outlier() -> None:
    """A log-probability that is not a number would be dropped without a word; it has to reach the loss instead."""
    inputs: dict[str, Any] = {
        "policy_logprobs": row(-1.0, -1.0),
        "rollout_logprobs": row(math.nan, -1.0),
        "response_mask": torch.ones(1, 2, dtype=torch.bool),
    }
    for weight in (
        masked_importance_weight(**inputs, low=0.5, high=2.0),
        truncated_importance_weight(**inputs, cap=2.0),
    ):
        assert weight.isnan().tolist() == [[True, False]]


def test_extreme_gaps_stay_finite() -> None:
    inputs = {
        "policy_logprobs": row(900.0, -900.0),
        "rollout_logprobs": row(0.0, 0.0),
        "response_mask": torch.ones(1, 2, dtype=torch.bool),
    }
    for level in ("token", "sequence", "geometric"):
        assert truncated_importance_weight(**inputs, cap=math.inf, level=level).isfinite().all()  # type: ignore[arg-type]


@pytest.mark.usefixtures("unchecked")
def test_bad_importance_settings_are_refused() -> None:
    good = torch.zeros(2, 3)
    mask = torch.ones(2, 3, dtype=torch.bool)
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
