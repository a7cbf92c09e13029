"""Group-relative advantages: values, abstentions, trivial groups, bounds."""

from __future__ import annotations

import math

import pytest
import torch
from ledger import prove

from rlkd.advantages import group_advantages
from rlkd.errors import NumericsError

SCORES = torch.tensor([1.0, 0.0, 0.0, 1.0, 1.0, 0.5], dtype=torch.float64)
GROUPS = torch.tensor([7, -2, 7, 7, -2, 7])  # group 7: 1, 0, 1, 0.5; group -2: 0, 1


def test_mean_baseline() -> None:
    got = group_advantages(scores=SCORES, group_ids=GROUPS, baseline="mean")
    want = torch.tensor([3 / 8, -1 / 2, -5 / 8, 3 / 8, 1 / 2, -1 / 8], dtype=torch.float64)
    prove("advantages", "group mean", got, want)


def test_leave_one_out_baseline() -> None:
    got = group_advantages(scores=SCORES, group_ids=GROUPS, baseline="leave_one_out")
    others = [(0 + 1 + 0.5) / 3, 1.0, (1 + 1 + 0.5) / 3, (1 + 0 + 0.5) / 3, 0.0, (1 + 0 + 1) / 3]
    prove("advantages", "leave-one-out", got, SCORES - torch.tensor(others, dtype=torch.float64))


def test_no_baseline_leaves_scores() -> None:
    assert group_advantages(scores=SCORES, group_ids=GROUPS, baseline="none").equal(SCORES)


def test_std_scale_is_the_sample_std_of_the_group() -> None:
    got = group_advantages(scores=SCORES, group_ids=GROUPS, baseline="mean", scale="std")
    deviations = [3 / 8, -5 / 8, 3 / 8, -1 / 8]
    std = math.sqrt(sum(d * d for d in deviations) / 3)
    assert got[GROUPS == 7].tolist() == pytest.approx([d / std for d in deviations])
    assert got[GROUPS == -2].tolist() == pytest.approx([-math.sqrt(0.5), math.sqrt(0.5)])


@pytest.mark.parametrize("baseline", ["mean", "leave_one_out"])
@pytest.mark.parametrize("scale", ["none", "std"])
def test_abstained_rollouts_leave_the_baseline(baseline: str, scale: str) -> None:
    """The rest gets what it would get without them, and they get nothing, whatever their score holds."""
    valid = torch.tensor([True, True, False, True, True, True])
    scores = SCORES.clone()
    scores[2] = math.nan
    got = group_advantages(scores=scores, group_ids=GROUPS, baseline=baseline, scale=scale, valid=valid)  # type: ignore[arg-type]
    want = group_advantages(scores=SCORES[valid], group_ids=GROUPS[valid], baseline=baseline, scale=scale)  # type: ignore[arg-type]
    assert got[2] == 0
    torch.testing.assert_close(got[valid], want, rtol=0, atol=0)


@pytest.mark.parametrize("baseline", ["mean", "leave_one_out"])
@pytest.mark.parametrize("scale", ["none", "std"])
@pytest.mark.parametrize("score", [0.0, 1.0, 0.1, -0.1, 1e9])
def test_trivial_groups_get_zero(baseline: str, scale: str, score: float) -> None:
    """Equal scores, one rollout, or one that is left after abstentions: exactly zero, no rounding residue."""
    scores = torch.full((5,), score, dtype=torch.float64)  # 0.1: three of them don't have the mean 0.1
    groups = torch.tensor([0, 0, 0, 1, 0])
    valid = torch.tensor([True, True, True, True, False])
    got = group_advantages(scores=scores, group_ids=groups, baseline=baseline, scale=scale, valid=valid)  # type: ignore[arg-type]
    assert got.tolist() == [0.0] * 5


def test_no_valid_rollout_is_zero() -> None:
    nothing = torch.zeros(2, dtype=torch.bool)
    scores = torch.tensor([math.nan, 1.0])
    for baseline in ("mean", "leave_one_out", "none"):
        got = group_advantages(
            scores=scores, group_ids=torch.zeros(2, dtype=torch.long), baseline=baseline, valid=nothing
        )
        assert got.tolist() == [0.0, 0.0]


@pytest.mark.parametrize("size", [2, 3, 8, 64])
def test_std_advantages_are_bounded(size: int) -> None:
    """The extreme case is one rollout against all others; its bound is reached, not passed."""
    scores = torch.zeros(size, dtype=torch.float64)
    scores[0] = 1e-3
    ids = torch.zeros(size, dtype=torch.long)
    mean = group_advantages(scores=scores, group_ids=ids, baseline="mean", scale="std")
    left_out = group_advantages(scores=scores, group_ids=ids, baseline="leave_one_out", scale="std")
    assert mean.abs().max().item() == pytest.approx((size - 1) / math.sqrt(size))
    assert left_out.abs().max().item() == pytest.approx(math.sqrt(size))


def test_tiny_spread_is_divided_by_the_floor() -> None:
    scores = torch.tensor([0.0, 2e-9], dtype=torch.float64)
    ids = torch.zeros(2, dtype=torch.long)
    got = group_advantages(scores=scores, group_ids=ids, scale="std", std_floor=1e-6)
    assert got.tolist() == pytest.approx([-1e-3, 1e-3])


def test_row_order_does_not_matter() -> None:
    order = torch.tensor([5, 2, 0, 1, 4, 3])
    for baseline in ("mean", "leave_one_out"):
        straight = group_advantages(scores=SCORES, group_ids=GROUPS, baseline=baseline, scale="std")
        shuffled = group_advantages(scores=SCORES[order], group_ids=GROUPS[order], baseline=baseline, scale="std")
        torch.testing.assert_close(shuffled, straight[order], rtol=1e-15, atol=1e-15)


def test_no_rollouts_no_advantages() -> None:
    assert group_advantages(scores=torch.zeros(0), group_ids=torch.zeros(0, dtype=torch.long)).shape == (0,)


@pytest.mark.usefixtures("unchecked")
def test_bad_scores_and_settings_are_refused() -> None:
    ids = torch.zeros(2, dtype=torch.long)
    with pytest.raises(NumericsError, match=r"rows \[1\] are not finite"):
        group_advantages(scores=torch.tensor([0.0, math.nan]), group_ids=ids)
    with pytest.raises(NumericsError, match="group_ids"):
        group_advantages(scores=torch.zeros(3), group_ids=ids)
    with pytest.raises(NumericsError, match="integers"):
        group_advantages(scores=torch.zeros(2), group_ids=torch.zeros(2))
    with pytest.raises(NumericsError, match="needs a baseline"):
        group_advantages(scores=torch.zeros(2), group_ids=ids, baseline="none", scale="std")
    with pytest.raises(NumericsError, match="baseline is one of"):
        group_advantages(scores=torch.zeros(2), group_ids=ids, baseline="median")  # type: ignore[arg-type]
    with pytest.raises(NumericsError, match="std_floor"):
        group_advantages(scores=torch.zeros(2), group_ids=ids, std_floor=0.0)
    with pytest.raises(NumericsError, match="valid"):
        group_advantages(scores=torch.zeros(2), group_ids=ids, valid=torch.ones(2))
