"""Whole-vocabulary, bucketed and chunked divergences: values, gradients, limits, refusals."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from divergence_cases import FAMILY, SETTINGS, logits
from ledger import differ, prove
from torch import Tensor

from rlkd.divergences import (
    DIVERGENCES,
    divergence,
    forward_kl,
    jensen_shannon,
    reverse_kl,
    skewed_forward_kl,
    skewed_reverse_kl,
    total_variation,
)
from rlkd.errors import NumericsError

NAMED = {
    "forward_kl": forward_kl,
    "reverse_kl": reverse_kl,
    "jensen_shannon": jensen_shannon,
    "skewed_forward_kl": skewed_forward_kl,
    "skewed_reverse_kl": skewed_reverse_kl,
    "total_variation": total_variation,
}


def by_hand(kind: str, weight: float | None, policy: list[float], teacher: list[float]) -> float:
    """The textbook sums over one position, in plain Python."""

    def kl(first: list[float], second: list[float]) -> float:
        return sum(a * math.log(a / b) for a, b in zip(first, second, strict=True) if a > 0)

    def mix(first: list[float], second: list[float], share: float) -> list[float]:
        return [share * a + (1 - share) * b for a, b in zip(first, second, strict=True)]

    if kind == "forward_kl":
        return kl(teacher, policy)
    if kind == "reverse_kl":
        return kl(policy, teacher)
    if kind == "total_variation":
        return sum(abs(a - b) for a, b in zip(policy, teacher, strict=True)) / 2
    assert weight is not None
    if kind == "jensen_shannon":
        middle = mix(teacher, policy, weight)
        return weight * kl(teacher, middle) + (1 - weight) * kl(policy, middle)
    if kind == "skewed_forward_kl":
        return kl(teacher, mix(teacher, policy, weight))
    return kl(policy, mix(policy, teacher, weight))


@pytest.mark.parametrize(("kind", "weight"), SETTINGS)
def test_divergence_values(kind: Any, weight: float | None) -> None:
    policy, teacher = logits(0), logits(1)
    want = [
        by_hand(kind, weight, p.softmax(0).tolist(), t.softmax(0).tolist())
        for p, t in zip(policy, teacher, strict=True)
    ]
    extra = {} if weight is None else {"mixture_weight": weight}
    got = NAMED[kind](policy_logits=policy, teacher_logits=teacher, **extra)
    prove(FAMILY, f"{kind} {weight or ''}", got, torch.tensor(want, dtype=torch.float64))


@pytest.mark.parametrize(("kind", "weight"), SETTINGS)
def test_gradients_are_those_of_finite_differences(kind: Any, weight: float | None) -> None:
    teacher = logits(1)

    def function(policy: Tensor) -> Tensor:
        return divergence(kind=kind, policy_logits=policy, teacher_logits=teacher, mixture_weight=weight).per_token

    assert torch.autograd.gradcheck(function, logits(0).requires_grad_())


@pytest.mark.parametrize(("kind", "weight"), SETTINGS)
def test_teacher_equal_to_policy_is_zero(kind: Any, weight: float | None) -> None:
    policy = logits(0).requires_grad_()
    values = divergence(kind=kind, policy_logits=policy, teacher_logits=policy, mixture_weight=weight).per_token
    assert values.abs().max() < 1e-15
    assert torch.autograd.grad(values.sum(), policy)[0].abs().max() < 1e-15


@pytest.mark.parametrize(("kind", "weight"), SETTINGS)
def test_teacher_swap_changes_the_gradient(kind: Any, weight: float | None) -> None:
    policy = logits(0).requires_grad_()
    gradients = [
        torch.autograd.grad(
            divergence(kind=kind, policy_logits=policy, teacher_logits=t, mixture_weight=weight).per_token.sum(),
            policy,
        )[0]
        for t in (logits(1), logits(2))
    ]
    differ(gradients[0], gradients[1])


@pytest.mark.parametrize(("kind", "weight"), SETTINGS)
def test_the_teacher_is_never_trained(kind: Any, weight: float | None) -> None:
    teacher = logits(1).requires_grad_()
    output = divergence(
        kind=kind, policy_logits=logits(0).requires_grad_(), teacher_logits=teacher, mixture_weight=weight
    )
    assert torch.autograd.grad(output.per_token.sum(), teacher, allow_unused=True)[0] is None
    assert not output.clipped_share.requires_grad


def test_forward_kl_gradient_is_cross_entropy() -> None:
    policy, teacher = logits(0).requires_grad_(), logits(1)
    got = torch.autograd.grad(forward_kl(policy_logits=policy, teacher_logits=teacher).sum(), policy)[0]
    want = torch.autograd.grad(torch.nn.functional.cross_entropy(policy, teacher.softmax(-1), reduction="sum"), policy)[
        0
    ]
    prove(FAMILY, "forward_kl, gradient", got, want)


def test_jensen_shannon_limits() -> None:
    """The ends are the KLs; close to an end the scaled formula tends to the same KL."""
    policy, teacher = logits(0), logits(1)
    inputs: dict[str, Any] = {"policy_logits": policy, "teacher_logits": teacher}
    assert jensen_shannon(**inputs, mixture_weight=0.0).equal(forward_kl(**inputs))
    assert jensen_shannon(**inputs, mixture_weight=1.0).equal(reverse_kl(**inputs))
    small = 1e-7
    prove("limits", "JSD to 0", jensen_shannon(**inputs, mixture_weight=small) / small, forward_kl(**inputs), 1e-5)
    prove("limits", "JSD to 1", jensen_shannon(**inputs, mixture_weight=1 - small) / small, reverse_kl(**inputs), 1e-5)


def test_skewed_limits() -> None:
    inputs: dict[str, Any] = {"policy_logits": logits(0), "teacher_logits": logits(1)}
    assert skewed_forward_kl(**inputs, mixture_weight=0.0).equal(forward_kl(**inputs))
    assert skewed_reverse_kl(**inputs, mixture_weight=0.0).equal(reverse_kl(**inputs))
    apart: dict[str, Any] = {
        "policy_logits": torch.tensor([[0.0, -torch.inf]]),
        "teacher_logits": torch.tensor([[-torch.inf, 0.0]]),
    }
    assert skewed_forward_kl(**apart, mixture_weight=0.1).item() == pytest.approx(-math.log(0.1))
    assert skewed_reverse_kl(**apart, mixture_weight=0.1).item() == pytest.approx(-math.log(0.1))


def test_jensen_shannon_is_bounded() -> None:
    apart: dict[str, Any] = {
        "policy_logits": torch.tensor([[0.0, -torch.inf]]),
        "teacher_logits": torch.tensor([[-torch.inf, 0.0]]),
    }
    assert jensen_shannon(**apart).item() == pytest.approx(math.log(2))
    assert total_variation(**apart).item() == 1.0
    assert forward_kl(**apart).item() == reverse_kl(**apart).item() == math.inf


@pytest.mark.parametrize(("kind", "weight"), SETTINGS)
def test_vocabulary_masked_on_both_sides_adds_nothing(kind: Any, weight: float | None) -> None:
    """-inf on both sides (padding rows of a head): same value and gradient as without the entry, no NaN."""
    policy, teacher = logits(0).requires_grad_(), logits(1)
    hidden = torch.tensor([False, True, False, False, True, False])
    setting: dict[str, Any] = {"kind": kind, "mixture_weight": weight}
    masked = divergence(
        policy_logits=policy.masked_fill(hidden, -torch.inf),
        teacher_logits=teacher.masked_fill(hidden, -torch.inf),
        **setting,
    ).per_token
    small = divergence(policy_logits=policy[:, ~hidden], teacher_logits=teacher[:, ~hidden], **setting).per_token
    prove(FAMILY, f"{kind}, masked vocabulary", masked, small)
    got, want = (torch.autograd.grad(v.sum(), policy)[0] for v in (masked, small))
    prove(FAMILY, f"{kind}, masked vocabulary, gradient", got, want)


def test_temperature_divides_both_sides() -> None:
    policy, teacher = logits(0), logits(1)
    got = divergence(kind="forward_kl", policy_logits=policy, teacher_logits=teacher, temperature=2.0).per_token
    prove(FAMILY, "temperature", got, forward_kl(policy_logits=policy / 2, teacher_logits=teacher / 2))


# --- OPSD's clip ---


def test_clip_caps_entries_before_the_sum() -> None:
    """Forward KL summands written out; the clipped sum is below zero here, which is allowed."""
    policy, teacher = [0.02, 0.58, 0.40], [0.30, 0.40, 0.30]
    summands = [t * math.log(t / p) for p, t in zip(policy, teacher, strict=True)]
    want = sum(min(x, 0.05) for x in summands)
    assert want < 0 < sum(summands)
    output = divergence(
        kind="forward_kl",
        policy_logits=torch.tensor([policy], dtype=torch.float64).log(),
        teacher_logits=torch.tensor([teacher], dtype=torch.float64).log(),
        clip=0.05,
    )
    prove(FAMILY, "OPSD clip", output.per_token, torch.tensor([want], dtype=torch.float64))


def test_clipped_share_is_the_teachers_mass() -> None:
    output = divergence(
        kind="forward_kl",
        policy_logits=torch.tensor([[0.02, 0.58, 0.40]]).log(),
        teacher_logits=torch.tensor([[0.30, 0.40, 0.30]]).log(),
        clip=0.05,
    )
    assert output.clipped_share.item() == pytest.approx(0.30)
    free = divergence(kind="forward_kl", policy_logits=logits(0), teacher_logits=logits(1))
    assert free.clipped_share.tolist() == [0.0] * 4


def test_clipped_entries_are_pushed_down() -> None:
    """Documented bias: a clipped entry's logit gets + p * (unclipped teacher mass), so descent lowers it."""
    policy = torch.tensor([[0.02, 0.58, 0.40]], dtype=torch.float64).log().requires_grad_()
    teacher = torch.tensor([[0.30, 0.40, 0.30]], dtype=torch.float64).log()
    clipped = divergence(kind="forward_kl", policy_logits=policy, teacher_logits=teacher, clip=0.05).per_token.sum()
    (gradient,) = torch.autograd.grad(clipped, policy)
    assert gradient[0, 0].item() == pytest.approx(0.02 * 0.70)


# --- bad input ---


@pytest.mark.parametrize(("kind", "weight"), SETTINGS)
def test_a_position_without_mass_stays_visible(kind: Any, weight: float | None) -> None:
    """All logits -inf: no distribution, so no number; the positions beside it are as they were."""
    policy, teacher = logits(0), logits(1)
    want = divergence(kind=kind, mixture_weight=weight, policy_logits=policy, teacher_logits=teacher).per_token
    for side in (policy, teacher):
        kept = side[2].clone()
        side[2] = -torch.inf
        got = divergence(kind=kind, mixture_weight=weight, policy_logits=policy, teacher_logits=teacher).per_token
        side[2] = kept
        assert got.isnan().tolist() == [False, False, True, False]
        assert got[[0, 1, 3]].equal(want[[0, 1, 3]])


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kind": "foward_kl"}, "did you mean 'forward_kl'"),
        ({"mixture_weight": 0.5}, "mixing divergence only"),
        ({"kind": "jensen_shannon"}, "mixture_weight is None"),
        ({"kind": "jensen_shannon", "mixture_weight": 1.1}, r"takes \[0, 1\]"),
        ({"kind": "jensen_shannon", "mixture_weight": -0.1}, r"takes \[0, 1\]"),
        ({"kind": "skewed_forward_kl", "mixture_weight": 1.0}, r"takes \[0, 1\)"),
        ({"clip": 0.0}, "clip"),
        ({"clip": math.nan}, "clip"),
        ({"temperature": 0.0}, "temperature"),
        ({"teacher_logits": torch.zeros(4, 5)}, "same shape"),
        ({"policy_logits": torch.zeros(4, 0), "teacher_logits": torch.zeros(4, 0)}, "empty"),
    ],
)
def test_bad_divergences_are_refused(change: dict[str, Any], message: str) -> None:
    inputs: dict[str, Any] = {"kind": "forward_kl", "policy_logits": logits(0), "teacher_logits": logits(1)}
    with pytest.raises(NumericsError, match=message):
        divergence(**(inputs | change))


def test_every_divergence_is_covered_here() -> None:
    assert {kind for kind, _ in SETTINGS} == set(DIVERGENCES) == set(NAMED)
