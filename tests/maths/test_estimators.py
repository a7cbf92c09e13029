"""Sampled KL estimators by enumeration: what each is worth as a value, and what it trains as a loss."""

from __future__ import annotations

import pytest
import torch
from ledger import differ, prove
from objective_cases import WORLD, local_gradients, pair, row
from torch import Tensor

from rlkd.divergences import reverse_kl
from rlkd.errors import NumericsError
from rlkd.objectives import forward_kl_k3, k1_value, loss_estimator, reverse_kl_k2

FAMILY = "KL estimators"


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


@pytest.mark.parametrize("estimator", [reverse_kl_k2, forward_kl_k3])
def test_the_teacher_is_never_trained(estimator: object) -> None:
    policy, teacher = (row(-1.0, -2.0, -0.5).requires_grad_() for _ in range(2))
    loss = estimator(policy_logprobs=policy, teacher_logprobs=teacher - 0.1)  # type: ignore[operator]
    got = torch.autograd.grad(loss.sum(), [policy, teacher], allow_unused=True)
    assert got[0] is not None
    assert got[0].abs().max() > 0
    assert got[1] is None


def test_half_precision_is_computed_in_float32() -> None:
    inputs = {name: tensor.bfloat16() for name, tensor in pair()[2].items()}
    exact = {name: tensor.float() for name, tensor in inputs.items()}
    for function in (reverse_kl_k2, forward_kl_k3, k1_value):
        assert function(**inputs).dtype == torch.float32
        assert function(**inputs).equal(function(**exact))


@pytest.mark.usefixtures("unchecked")
def test_bad_estimates_are_refused() -> None:
    good, short = torch.zeros(2, 3), torch.zeros(2, 1)
    with pytest.raises(NumericsError, match="same shape"):
        reverse_kl_k2(policy_logprobs=good, teacher_logprobs=short)
