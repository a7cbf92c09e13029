"""Whole-vocabulary, bucketed and chunked divergences: values, gradients, limits, refusals."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
from ledger import differ, prove
from torch import Tensor

from rlkd.divergences import (
    DIVERGENCES,
    Support,
    bucketed,
    chunked_bucketed,
    chunked_divergence,
    chunked_divergence_loss,
    chunked_top_support,
    complete,
    divergence,
    forward_kl,
    jensen_shannon,
    reverse_kl,
    skewed_forward_kl,
    skewed_reverse_kl,
    top_support,
    total_variation,
    union_support,
)
from rlkd.errors import NumericsError

FAMILY = "divergences"
SETTINGS: list[tuple[str, float | None]] = [
    ("forward_kl", None),
    ("reverse_kl", None),
    ("jensen_shannon", 0.5),
    ("jensen_shannon", 0.1),
    ("skewed_forward_kl", 0.1),
    ("skewed_reverse_kl", 0.3),
    ("total_variation", None),
]
NAMED = {
    "forward_kl": forward_kl,
    "reverse_kl": reverse_kl,
    "jensen_shannon": jensen_shannon,
    "skewed_forward_kl": skewed_forward_kl,
    "skewed_reverse_kl": skewed_reverse_kl,
    "total_variation": total_variation,
}


def logits(seed: int = 0, *shape: int) -> Tensor:
    return torch.randn(shape or (4, 6), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


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


# --- a few entries and the rest ---


def test_bucketed_is_a_distribution() -> None:
    policy = logits(0).requires_grad_()
    support = top_support(logits(1), k=2)
    buckets = bucketed(policy, support)
    probabilities = policy.softmax(-1)
    chosen = probabilities.gather(-1, support.ids)
    want = torch.cat([chosen, 1 - chosen.sum(-1, keepdim=True)], -1)
    prove(FAMILY, "bucketed", buckets.exp(), want)
    got, expected = (torch.autograd.grad((x * logits(3, 4, 3)).sum(), policy)[0] for x in (buckets.exp(), want))
    prove(FAMILY, "bucketed, gradient", got, expected)


def test_a_tail_without_mass_has_no_gradient() -> None:
    """All entries outside the support are masked vocabulary (-inf): no NaN comes back through the empty tail."""
    policy = logits(0).requires_grad_()
    masked = policy.masked_fill(torch.arange(6) >= 2, -torch.inf)
    support = Support(torch.tensor([[0, 1]]).expand(4, 2), torch.ones(4, 2, dtype=torch.bool))
    teacher = bucketed(logits(1).masked_fill(torch.arange(6) >= 2, -torch.inf), support)
    value = reverse_kl(policy_logits=bucketed(masked, support), teacher_logits=teacher)
    small = reverse_kl(policy_logits=policy[:, :2], teacher_logits=logits(1)[:, :2])
    prove(FAMILY, "empty tail", value, small)
    got, want = (torch.autograd.grad(v.sum(), policy)[0] for v in (value, small))
    prove(FAMILY, "empty tail, gradient", got, want)


def test_tail_is_exact_when_tiny() -> None:
    """A tail of e^-40 survives in float32, where 1 - sum would be 0."""
    buckets = bucketed(torch.tensor([[0.0, -40.0, -40.0]]), top_support(torch.tensor([[0.0, -40.0, -40.0]]), k=1))
    assert buckets[0, 1].item() == pytest.approx(-40 + math.log(2), abs=1e-5)


@pytest.mark.parametrize(("kind", "weight"), SETTINGS)
def test_support_on_all_entries_equals_the_full_divergence(kind: Any, weight: float | None) -> None:
    """k = V: the tail is empty, and neither value nor gradient changes."""
    policy, teacher = logits(0).requires_grad_(), logits(1)
    support = top_support(teacher, k=6)
    setting: dict[str, Any] = {"kind": kind, "mixture_weight": weight}
    full = divergence(policy_logits=policy, teacher_logits=teacher, **setting).per_token
    few = divergence(
        policy_logits=bucketed(policy, support), teacher_logits=bucketed(teacher, support), **setting
    ).per_token
    prove(FAMILY, f"{kind}, k=V", few, full)
    got, want = (torch.autograd.grad(v.sum(), policy)[0] for v in (few, full))
    prove(FAMILY, f"{kind}, k=V, gradient", got, want)


@pytest.mark.parametrize(("kind", "weight"), SETTINGS)
def test_bucketing_never_raises_a_divergence(kind: Any, weight: float | None) -> None:
    """Merging outcomes loses information: the bucketed value is a lower bound that rises with k."""
    policy, teacher = logits(0, 50, 6), logits(1, 50, 6)
    setting: dict[str, Any] = {"kind": kind, "mixture_weight": weight}
    values = [
        divergence(
            policy_logits=bucketed(policy, support), teacher_logits=bucketed(teacher, support), **setting
        ).per_token
        for support in (top_support(teacher, k=k) for k in range(1, 7))
    ]
    for fewer, more in itertools.pairwise(values):
        assert (fewer <= more + 1e-12).all()
    assert (values[0] < values[-1] - 1e-3).any()


def test_mass_cannot_leave_the_support_for_free() -> None:
    """The fault of unnormalised top-k reverse KL: moving all mass out of the set pays. With the bucket it costs."""
    teacher = torch.tensor([[2.0, 1.0, 0.0, -3.0, -3.0]])
    support = top_support(teacher, k=3)
    near, escaped = teacher + 0.1, torch.tensor([[-9.0, -9.0, -9.0, 0.0, 0.0]])
    costs = [
        reverse_kl(policy_logits=bucketed(p, support), teacher_logits=bucketed(teacher, support)).item()
        for p in (near, escaped)
    ]
    unnormalised = (escaped.log_softmax(-1).exp() * (escaped - teacher).log_softmax(-1))[:, :3].sum()
    assert costs[0] < 1e-6 < 1 < costs[1]
    assert unnormalised < 0.01


def test_union_holds_each_entry_once() -> None:
    first = Support(torch.tensor([[0, 1], [2, 3]]), torch.ones(2, 2, dtype=torch.bool))
    second = Support(torch.tensor([[1, 4], [3, 2]]), torch.ones(2, 2, dtype=torch.bool))
    union = union_support(first, second)
    got = [sorted(ids[valid].tolist()) for ids, valid in zip(union.ids, union.valid, strict=True)]
    assert got == [[0, 1, 4], [2, 3]]
    buckets = bucketed(logits(0, 2, 6), union)
    prove(FAMILY, "union sums to one", buckets.exp().sum(-1), torch.ones(2, dtype=torch.float64))
    policy = logits(0, 2, 6).requires_grad_()
    value = reverse_kl(policy_logits=bucketed(policy, union), teacher_logits=bucketed(logits(1, 2, 6), union))
    assert torch.autograd.grad(value.sum(), policy)[0].isfinite().all()


def test_complete_matches_bucketed() -> None:
    """A stored teacher top-k with its tail from 1 - sum equals the exact bucket."""
    teacher = logits(1)
    support = top_support(teacher, k=3)
    stored = teacher.log_softmax(-1).gather(-1, support.ids)
    prove(FAMILY, "complete", complete(stored), bucketed(teacher, support))
    valid = torch.tensor([True, False, True]).expand(4, 3)
    prove(
        FAMILY,
        "complete, invalid slots",
        complete(stored, valid).exp(),
        bucketed(teacher, Support(support.ids, valid)).exp(),
    )


def test_a_full_support_leaves_the_tail_its_floor() -> None:
    logprobs = torch.tensor([[0.75, 0.25]]).log()
    assert complete(logprobs, tail_floor=1e-6)[0, 2].item() == pytest.approx(math.log(1e-6))
    value = reverse_kl(policy_logits=torch.tensor([[0.7, 0.2, 0.1]]).log(), teacher_logits=complete(logprobs))
    assert value.isfinite().all()


def test_unnormalised_logprobs_are_refused() -> None:
    with pytest.raises(NumericsError, match="sum to"):
        complete(torch.tensor([[0.0, 0.0]]))


# --- chunked ---


def heads(dtype: torch.dtype = torch.float64) -> dict[str, Any]:
    return {
        "hidden": logits(0, 7, 4).to(dtype),
        "head_weight": logits(1, 9, 4).to(dtype),
        "teacher_hidden": logits(2, 7, 3).to(dtype),
        "teacher_head_weight": logits(3, 9, 3).to(dtype),
    }


@pytest.mark.parametrize(("kind", "weight"), SETTINGS)
@pytest.mark.parametrize("clip", [math.inf, 0.05])
@pytest.mark.parametrize("chunk_size", [1, 3, None])
def test_chunked_divergence_equals_plain(kind: Any, weight: float | None, clip: float, chunk_size: int | None) -> None:
    inputs = heads()
    trained = [inputs["hidden"].requires_grad_(), inputs["head_weight"].requires_grad_()]
    setting: dict[str, Any] = {"kind": kind, "mixture_weight": weight, "clip": clip, "temperature": 1.3}
    plain = divergence(
        policy_logits=inputs["hidden"] @ inputs["head_weight"].T,
        teacher_logits=inputs["teacher_hidden"] @ inputs["teacher_head_weight"].T,
        **setting,
    )
    chunked = chunked_divergence(**inputs, **setting, chunk_size=chunk_size)
    prove(FAMILY, f"chunked {kind}", chunked.per_token, plain.per_token, 1e-12)
    torch.testing.assert_close(chunked.clipped_share, plain.clipped_share, rtol=0, atol=1e-14)
    assert (clip == math.inf) == (float(plain.clipped_share.max()) == 0)
    upstream = torch.linspace(-1, 2, 7, dtype=torch.float64)
    got = torch.autograd.grad(chunked.per_token @ upstream, trained)
    want = torch.autograd.grad(plain.per_token @ upstream, trained)
    prove(FAMILY, f"chunked {kind}, d hidden", got[0], want[0], 1e-12)
    prove(FAMILY, f"chunked {kind}, d head", got[1], want[1], 1e-12)


@pytest.mark.parametrize(("kind", "weight"), SETTINGS)
def test_chunked_divergence_gradcheck(kind: Any, weight: float | None) -> None:
    inputs = heads()
    bias = {"head_bias": logits(5, 9).requires_grad_(), "teacher_head_bias": logits(6, 9)}

    def function(hidden: Tensor, head_weight: Tensor, head_bias: Tensor) -> Tensor:
        changed = inputs | bias | {"hidden": hidden, "head_weight": head_weight, "head_bias": head_bias}
        return chunked_divergence(kind=kind, mixture_weight=weight, chunk_size=2, **changed).per_token

    given = (inputs["hidden"].requires_grad_(), inputs["head_weight"].requires_grad_(), bias["head_bias"])
    assert torch.autograd.gradcheck(function, given)


@pytest.mark.parametrize(("kind", "weight"), SETTINGS)
@pytest.mark.parametrize("clip", [math.inf, 0.05])
@pytest.mark.parametrize("chunk_size", [2, None])
def test_one_pass_loss_equals_two_passes(kind: Any, weight: float | None, clip: float, chunk_size: int | None) -> None:
    inputs = heads() | {"head_bias": logits(5, 9).requires_grad_()}
    trained = [inputs["hidden"].requires_grad_(), inputs["head_weight"].requires_grad_(), inputs["head_bias"]]
    setting: dict[str, Any] = {"kind": kind, "mixture_weight": weight, "clip": clip, "temperature": 1.3}
    weights = torch.tensor([0.5, 0.0, 2.0, -1.0, 0.1, 0.0, 1.0], dtype=torch.float64)
    one = chunked_divergence_loss(**inputs, **setting, loss_weights=weights, chunk_size=chunk_size)
    two = chunked_divergence(**inputs, **setting)
    prove(FAMILY, f"one pass, {kind}", one.loss[None], (weights * two.per_token).sum()[None], 1e-12)
    prove(FAMILY, f"one pass, {kind}, values", one.per_token, two.per_token.where(weights != 0, 0.0), 1e-12)
    torch.testing.assert_close(one.clipped_share, two.clipped_share.where(weights != 0, 0.0), rtol=0, atol=1e-14)
    assert not one.per_token.requires_grad
    got = torch.autograd.grad(3 * one.loss, trained)
    want = torch.autograd.grad(3 * (weights * two.per_token).sum(), trained)
    for name, first, second in zip(("hidden", "head", "bias"), got, want, strict=True):
        prove(FAMILY, f"one pass, {kind}, d {name}", first, second, 1e-12)


def test_positions_without_weight_may_hold_nan() -> None:
    inputs = heads()
    inputs["hidden"][3] = math.nan
    inputs["teacher_hidden"][3] = math.inf
    trained = [inputs["hidden"].requires_grad_(), inputs["head_weight"].requires_grad_()]
    weights = (torch.arange(7) != 3).double()
    output = chunked_divergence_loss(kind="reverse_kl", **inputs, loss_weights=weights, chunk_size=3)
    assert output.loss.isfinite()
    for gradient in torch.autograd.grad(output.loss, trained):
        assert gradient.isfinite().all()
        assert gradient.abs().max() > 0


def test_padded_vocabularies_are_left_out() -> None:
    """Heads padded to 9 and 8 rows that share 6 tokens: as if the padding were not there; its gradient is zero."""
    inputs = heads()
    inputs["teacher_head_weight"] = inputs["teacher_head_weight"][:8]
    weight = inputs["head_weight"].requires_grad_()
    got = chunked_divergence(kind="reverse_kl", vocabulary_size=6, **inputs).per_token
    want = reverse_kl(
        policy_logits=inputs["hidden"] @ weight[:6].T,
        teacher_logits=inputs["teacher_hidden"] @ inputs["teacher_head_weight"][:6].T,
    )
    prove(FAMILY, "padded vocabularies", got, want, 1e-12)
    gradient, expected = (torch.autograd.grad(x.sum(), weight)[0] for x in (got, want))
    prove(FAMILY, "padded vocabularies, gradient", gradient, expected, 1e-12)
    assert gradient[6:].abs().max() == 0


def test_masked_positions_may_hold_nan() -> None:
    inputs = heads()
    keep = torch.arange(7) != 3
    hidden = inputs["hidden"].clone()
    hidden[3] = math.nan
    gradients = []
    for states in (inputs["hidden"], hidden):
        trained = [states.requires_grad_(), inputs["head_weight"].requires_grad_()]
        values = chunked_divergence(kind="forward_kl", **(inputs | {"hidden": states}), chunk_size=2).per_token
        gradients.append(torch.autograd.grad(values.where(keep, 0.0).sum(), trained))
    torch.testing.assert_close(gradients[0], gradients[1], rtol=0, atol=1e-14)


@pytest.mark.parametrize(("kind", "weight"), SETTINGS)
def test_chunked_bfloat16_rounds_only_the_product(kind: Any, weight: float | None) -> None:
    inputs = heads(torch.bfloat16)
    got = chunked_divergence(kind=kind, mixture_weight=weight, **inputs).per_token
    want = divergence(
        kind=kind,
        mixture_weight=weight,
        policy_logits=(inputs["hidden"] @ inputs["head_weight"].T).double(),
        teacher_logits=(inputs["teacher_hidden"] @ inputs["teacher_head_weight"].T).double(),
    ).per_token
    assert got.dtype == torch.float32
    prove("float32", f"chunked {kind}, bfloat16 input", got.double(), want, 1e-5)


def test_chunked_bucketed_equals_plain() -> None:
    inputs = heads()
    hidden, weight = inputs["hidden"].requires_grad_(), inputs["head_weight"].requires_grad_()
    support = union_support(top_support(logits(7, 7, 9), k=3), top_support(logits(8, 7, 9), k=3))
    got = chunked_bucketed(hidden=hidden, head_weight=weight, support=support, temperature=0.8, chunk_size=3)
    want = bucketed(hidden @ weight.T / 0.8, support)
    prove(FAMILY, "chunked_bucketed", got.exp(), want.exp(), 1e-12)
    upstream = logits(9, 7, 7)
    gradients = [torch.autograd.grad((x.exp() * upstream).sum(), [hidden, weight]) for x in (got, want)]
    prove(FAMILY, "chunked_bucketed, d hidden", gradients[0][0], gradients[1][0], 1e-12)
    prove(FAMILY, "chunked_bucketed, d head", gradients[0][1], gradients[1][1], 1e-12)


def test_chunked_bucketed_gradcheck() -> None:
    inputs = heads()
    support = top_support(logits(7, 7, 9), k=3)

    def function(hidden: Tensor, weight: Tensor) -> Tensor:
        return chunked_bucketed(hidden=hidden, head_weight=weight, support=support, chunk_size=3)

    assert torch.autograd.gradcheck(
        function, (inputs["hidden"].requires_grad_(), inputs["head_weight"].requires_grad_())
    )


def test_chunked_top_support_equals_plain() -> None:
    inputs = heads()
    got = chunked_top_support(hidden=inputs["hidden"], head_weight=inputs["head_weight"], k=4, chunk_size=2)
    assert got.ids.equal(top_support(inputs["hidden"] @ inputs["head_weight"].T, k=4).ids)
    assert chunked_top_support(hidden=inputs["hidden"][:0], head_weight=inputs["head_weight"], k=4).ids.shape == (0, 4)


# --- bad input ---


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


@pytest.mark.usefixtures("unchecked")
def test_bad_chunked_input_is_refused() -> None:
    inputs: dict[str, Any] = {"kind": "forward_kl", **heads()}
    with pytest.raises(NumericsError, match="give vocabulary_size"):
        chunked_divergence(**(inputs | {"teacher_head_weight": logits(0, 8, 3)}))
    with pytest.raises(NumericsError, match=r"must be in \[1, 9\]"):
        chunked_divergence(**inputs, vocabulary_size=10)
    for weights in (torch.zeros(6), torch.full((7,), math.nan)):
        with pytest.raises(NumericsError, match="loss_weights"):
            chunked_divergence_loss(**inputs, loss_weights=weights)
    with pytest.raises(NumericsError, match="positions"):
        chunked_divergence(**(inputs | {"teacher_hidden": logits(0, 6, 3)}))
    with pytest.raises(NumericsError, match="hidden"):
        chunked_divergence(**(inputs | {"teacher_hidden": logits(0, 7, 4)}))
    for k in (0, 10):
        with pytest.raises(NumericsError, match=r"\[1, 9\]"):
            top_support(logits(0, 7, 9), k=k)
    support = top_support(logits(0, 7, 9), k=2)
    with pytest.raises(NumericsError, match="positions"):
        bucketed(logits(0, 6, 9), support)
    with pytest.raises(NumericsError, match="support ids"):
        bucketed(logits(0, 7, 9), Support(support.ids + 9, support.valid))
    with pytest.raises(NumericsError, match="support ids"):
        chunked_bucketed(
            hidden=inputs["hidden"], head_weight=inputs["head_weight"], support=Support(support.ids - 9, support.valid)
        )


def test_every_divergence_is_covered_here() -> None:
    assert {kind for kind, _ in SETTINGS} == set(DIVERGENCES) == set(NAMED)
