"""Credit from outcomes to tokens: reward-to-go, shaping after normalisation, filters, two-turn advantages."""

from __future__ import annotations

import math

import pytest
import torch
from ledger import differ, prove
from tabular import Tabular
from torch import Tensor

from rlkd.advantages import (
    add_shaping,
    first_turn_advantages,
    group_advantages,
    groups_with_signal,
    reward_to_go,
    soft_overlong_penalty,
    to_tokens,
    turn_advantages,
)
from rlkd.errors import NumericsError
from rlkd.objectives import k1_value, reinforce, reverse_kl_k2

FAMILY = "advantages"
WORLD = Tabular()


def double(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def kl_credit_gradient(discount: float) -> tuple[Tensor, Tensor, Tensor]:
    """Expected gradient with -k1 as reward; gradient of sequence KL; expected k2 gradient."""
    table, teacher = WORLD.table(1), WORLD.table(2).detach()
    inputs = {"policy_logprobs": WORLD.logprobs(table), "teacher_logprobs": WORLD.logprobs(teacher)}
    credit = reward_to_go(rewards=-k1_value(**inputs), response_mask=WORLD.mask, discount=discount)
    loss = reinforce(policy_logprobs=inputs["policy_logprobs"], advantages=credit)
    sequence = (WORLD.probabilities(table) * (inputs["policy_logprobs"] - inputs["teacher_logprobs"]).sum(1)).sum()
    return (
        WORLD.expected_gradient(table, loss),
        WORLD.gradient(table, sequence),
        WORLD.expected_gradient(table, reverse_kl_k2(**inputs)),
    )


def test_reward_to_go_gives_the_sequence_kl_gradient() -> None:
    got, sequence, local = kl_credit_gradient(1.0)
    prove(FAMILY, "reward_to_go, sequence KL", got, sequence)
    differ(sequence, local)


def test_discount_zero_is_token_local() -> None:
    got, _, local = kl_credit_gradient(0.0)
    prove(FAMILY, "reward_to_go, token-local KL", got, local)


@pytest.mark.parametrize("discount", [1.0, 0.5, 0.0])
def test_reward_to_go_skips_untrained_tokens(discount: float) -> None:
    """A tool's tokens between two of the policy's: they earn nothing, get nothing and discount nothing."""
    rewards = torch.tensor([[1.0, math.nan, 2.0, 4.0, math.inf]], dtype=torch.float64)
    mask = torch.tensor([[True, False, True, True, False]])
    want = [1 + discount * (2 + discount * 4), 0.0, 2 + discount * 4, 4.0, 0.0]
    got = reward_to_go(rewards=rewards, response_mask=mask, discount=discount)
    prove(FAMILY, f"reward_to_go, discount {discount}", got[0], double(*want))


def test_outcome_credit_reaches_trained_tokens_only() -> None:
    mask = torch.tensor([[True, False, True], [False, False, False]])
    got = to_tokens(torch.tensor([2.0, math.nan]), mask)
    assert got.tolist() == [[2.0, 0.0, 2.0], [0.0, 0.0, 0.0]]
    with pytest.raises(NumericsError, match=r"rows \[0\]"):
        to_tokens(torch.tensor([math.inf, 0.0]), mask)


def test_soft_overlong_ramp() -> None:
    """DAPO's numbers: limit 20480, buffer 4096."""
    lengths = torch.tensor([0, 16384, 16384 + 1024, 20480, 30000])
    got = soft_overlong_penalty(lengths=lengths, max_length=20480, buffer=4096, factor=0.5)
    assert got.tolist() == [0.0, 0.0, -0.125, -0.5, -0.5]


def test_shaping_after_normalisation_makes_no_phantom_advantages() -> None:
    """An all-wrong group of different lengths: full-size advantages if shaped first, the bare penalty if after."""
    scores, ids = torch.zeros(4), torch.zeros(4, dtype=torch.long)
    shaping = torch.tensor([0.0, 0.0, -0.01, -0.02])
    before = group_advantages(scores=scores + shaping, group_ids=ids, scale="std")
    advantages = group_advantages(scores=scores, group_ids=ids, scale="std")
    after = add_shaping(advantages=advantages, shaping=shaping, valid=torch.tensor([True, True, True, False]))
    assert before.abs().max() > 1
    torch.testing.assert_close(after, torch.tensor([0.0, 0.0, -0.01, 0.0]), rtol=0, atol=0)


def test_groups_with_signal() -> None:
    scores = torch.tensor([1.0, 0.0, 1.0, 1.0, 0.5, 0.5, 0.0, 1.0])
    ids = torch.tensor([0, 0, 1, 1, 2, 2, 3, 3])
    valid = torch.tensor([True] * 7 + [False])
    assert groups_with_signal(scores=scores, group_ids=ids).tolist() == [
        True,
        True,
        False,
        False,
        False,
        False,
        True,
        True,
    ]
    assert groups_with_signal(scores=scores, group_ids=ids, valid=valid)[6:].tolist() == [False, False]


def two_turns() -> dict[str, Tensor]:
    return {
        "first_scores": double(0, 1, 0, 1, 0, 0),
        "second_scores": double(1, math.nan, 0.5, math.nan, 1, 1),
        "group_ids": torch.tensor([0, 0, 0, 0, 1, 1]),
        "has_second_turn": torch.tensor([True, False, True, False, True, True]),
    }


def test_first_turn_advantages_by_hand() -> None:
    """Group 0: mean first score 1/2; group 1: 0. Terminated rollouts get nothing."""
    got = first_turn_advantages(**two_turns())
    prove(FAMILY, "RLTF first-turn baseline", got, double(0.5, 0, 0, 0, 1, 1))


def test_first_turn_baseline_keeps_signal_when_all_revisions_succeed() -> None:
    """Group 1: both revisions right. A second-turn mean leaves nothing, the first-turn mean leaves everything."""
    turns = two_turns()
    rows = turns["group_ids"] == 1
    second = group_advantages(scores=turns["second_scores"][rows], group_ids=turns["group_ids"][rows])
    assert second.tolist() == [0.0, 0.0]
    assert first_turn_advantages(**turns)[rows].tolist() == [1.0, 1.0]


def test_first_turn_abstentions() -> None:
    turns = two_turns()
    turns["first_scores"][3] = math.nan
    valid = torch.tensor([True, True, True, False, True, True])
    got = first_turn_advantages(**turns, valid=valid)
    third = 1 / 3
    prove(FAMILY, "RLTF baseline without abstained", got, double(1 - third, 0, 0.5 - third, 0, 1, 1))


def test_turn_advantages_by_hand() -> None:
    first, second = turn_advantages(**two_turns(), discount=0.1)
    returns = double(0.1, 1.0, 0.05, 1.0, 0.1, 0.1)
    mean = returns[:4].mean()
    prove(FAMILY, "RLTF first turn", first, torch.cat([returns[:4] - mean, double(0, 0)]))
    prove(FAMILY, "RLTF second turn", second, double(0.25, 0, -0.25, 0, 0, 0))


@pytest.mark.usefixtures("unchecked")
def test_bad_credit_is_refused() -> None:
    mask = torch.ones(1, 2, dtype=torch.bool)
    with pytest.raises(NumericsError, match="discount"):
        reward_to_go(rewards=torch.zeros(1, 2), response_mask=mask, discount=1.5)
    with pytest.raises(NumericsError, match="same shape"):
        reward_to_go(rewards=torch.zeros(1, 3), response_mask=mask)
    with pytest.raises(NumericsError, match="buffer"):
        soft_overlong_penalty(lengths=torch.tensor([1]), max_length=4, buffer=5)
    with pytest.raises(NumericsError, match="shaping"):
        add_shaping(advantages=torch.zeros(1), shaping=torch.tensor([math.nan]))
    with pytest.raises(NumericsError, match="one entry a row"):
        to_tokens(torch.zeros(2), mask)
    turns = two_turns()
    with pytest.raises(NumericsError, match="second score"):
        first_turn_advantages(**(turns | {"has_second_turn": torch.ones(6, dtype=torch.bool)}))
    with pytest.raises(NumericsError, match="discount"):
        turn_advantages(**turns, discount=-1.0)
    with pytest.raises(NumericsError, match="same shape"):
        first_turn_advantages(**(turns | {"second_scores": torch.zeros(5)}))
