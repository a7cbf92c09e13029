"""Divergences on a few entries and on chunks of hidden states: equal to the whole-vocabulary form."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
from divergence_cases import FAMILY, SETTINGS, logits
from ledger import prove
from torch import Tensor

from rlkd.divergences import (
    Support,
    bucketed,
    chunked_bucketed,
    chunked_divergence,
    chunked_top_support,
    complete,
    divergence,
    reverse_kl,
    top_support,
    union_support,
)
from rlkd.errors import NumericsError

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


@pytest.mark.usefixtures("kept")
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
@pytest.mark.parametrize("alike", [torch.ones(7) > 0, torch.arange(7) % 3 > 0], ids=["all", "some"])
def test_positions_weighed_alike_take_one_pass(
    kind: Any, weight: float | None, clip: float, chunk_size: int | None, alike: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    inputs = heads() | {"head_bias": logits(5, 9).requires_grad_()}
    parts = [inputs["hidden"].requires_grad_(), inputs["head_weight"].requires_grad_(), inputs["head_bias"]]
    setting: dict[str, Any] = {"kind": kind, "mixture_weight": weight, "clip": clip, "temperature": 1.3}
    weights = alike.double() * 0.7
    one = chunked_divergence(**inputs, **setting, weighed_alike=alike, chunk_size=chunk_size)
    two = chunked_divergence(**inputs, **setting)
    prove(FAMILY, f"one pass, {kind}, values", one.per_token, two.per_token, 1e-12)
    torch.testing.assert_close(one.clipped_share, two.clipped_share, rtol=0, atol=1e-14)
    want = torch.autograd.grad((weights * two.per_token).sum(), parts)
    monkeypatch.setattr("rlkd.divergences.chunked._Heads.compute", None)  # nothing may be computed again
    got = torch.autograd.grad((weights * one.per_token).sum(), parts)
    for name, first, second in zip(("hidden", "head", "bias"), got, want, strict=True):
        prove(FAMILY, f"one pass, {kind}, d {name}", first, second, 1e-12)


@pytest.mark.parametrize("weights", [[1, 1, 1, 2, 1, 0, 1], [1, 1, 1, 1, 1, 1, 1], [0, 0, 0, 0, 0, 1, 0]])
def test_another_weight_is_computed_anew(weights: list[float]) -> None:
    """Not what was counted on: unequal, more positions, others."""
    inputs = heads()
    parts = [inputs["hidden"].requires_grad_(), inputs["head_weight"].requires_grad_()]
    alike, given = torch.arange(7) != 5, torch.tensor(weights, dtype=torch.float64)
    want = torch.autograd.grad((given * chunked_divergence(kind="reverse_kl", **inputs).per_token).sum(), parts)
    one = chunked_divergence(kind="reverse_kl", **inputs, weighed_alike=alike).per_token
    for first, second in zip(torch.autograd.grad((given * one).sum(), parts), want, strict=True):
        prove(FAMILY, "one pass, other weights", first, second, 1e-12)


def test_a_gradient_that_was_handed_out_is_computed_anew() -> None:
    inputs = heads()
    parts = [inputs["hidden"].requires_grad_(), inputs["head_weight"].requires_grad_()]
    alike = torch.arange(7) != 5
    want = torch.autograd.grad((2 * alike * chunked_divergence(kind="reverse_kl", **inputs).per_token).sum(), parts)
    one = chunked_divergence(kind="reverse_kl", **inputs, weighed_alike=alike).per_token
    for _ in range(2):
        got = torch.autograd.grad((2 * alike * one).sum(), parts, retain_graph=True)
        for first, second in zip(got, want, strict=True):
            prove(FAMILY, "one pass, twice", first, second, 1e-12)


def test_a_row_that_nothing_is_learnt_from_has_no_gradient() -> None:
    inputs = heads()
    hidden = inputs["hidden"].requires_grad_()
    found = chunked_divergence(kind="reverse_kl", **inputs, weighed_alike=torch.zeros(7) > 0)
    assert torch.equal(torch.autograd.grad((0 * found.per_token).sum(), hidden)[0], torch.zeros_like(hidden))


def test_positions_outside_may_hold_nan() -> None:
    inputs = heads()
    inputs["hidden"][3] = math.nan
    inputs["teacher_hidden"][3] = math.inf
    parts = [inputs["hidden"].requires_grad_(), inputs["head_weight"].requires_grad_()]
    alike = torch.arange(7) != 3
    found = chunked_divergence(kind="reverse_kl", **inputs, weighed_alike=alike, chunk_size=3).per_token
    for gradient in torch.autograd.grad(found[alike].sum(), parts):
        assert gradient.isfinite().all()
        assert gradient.abs().max() > 0


@pytest.mark.parametrize(("kind", "weight"), SETTINGS)
@pytest.mark.parametrize("clip", [math.inf, 0.05])
def test_blocks_of_a_chunk_change_nothing(
    kind: Any, weight: float | None, clip: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two rows of nine logits at a time (the last block has one): value, share and gradient of the chunk as a whole."""
    inputs = heads()
    trained = [inputs["hidden"].requires_grad_(), inputs["head_weight"].requires_grad_()]
    setting: dict[str, Any] = {"kind": kind, "mixture_weight": weight, "clip": clip}
    weights = torch.linspace(-1, 2, 7, dtype=torch.float64)
    whole = chunked_divergence(**inputs, **setting)
    want = torch.autograd.grad((weights * whole.per_token).sum(), trained)
    monkeypatch.setattr("rlkd.divergences.chunked.CPU_BLOCK", 20)
    parts = chunked_divergence(**inputs, **setting)
    got = torch.autograd.grad((weights * parts.per_token).sum(), trained)
    for first, second in zip(got, want, strict=True):
        prove(FAMILY, f"blocks, {kind}", first, second, 1e-13)
    prove(FAMILY, f"blocks, {kind}, values", parts.per_token, whole.per_token, 1e-13)
    torch.testing.assert_close(parts.clipped_share, whole.clipped_share, rtol=0, atol=1e-14)


def test_a_scored_divergence_keeps_no_slopes(monkeypatch: pytest.MonkeyPatch) -> None:
    inputs = heads()
    inputs["head_weight"].requires_grad_()
    kept: list[int] = []
    monkeypatch.setattr("rlkd.divergences.chunked.Slopes.keep", lambda _, slope: kept.append(len(slope)))
    with torch.no_grad():
        chunked_divergence(**inputs, kind="reverse_kl")
    assert kept == []
    chunked_divergence(**inputs, kind="reverse_kl")
    assert kept == [7]


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


@pytest.mark.usefixtures("kept")
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
def test_bad_chunked_input_is_refused() -> None:
    inputs: dict[str, Any] = {"kind": "forward_kl", **heads()}
    with pytest.raises(NumericsError, match="give vocabulary_size"):
        chunked_divergence(**(inputs | {"teacher_head_weight": logits(0, 8, 3)}))
    with pytest.raises(NumericsError, match=r"must be in \[1, 9\]"):
        chunked_divergence(**inputs, vocabulary_size=10)
    for alike in (torch.ones(7), torch.ones(6, dtype=torch.bool)):
        with pytest.raises(NumericsError, match="weighed_alike"):
            chunked_divergence(**inputs, weighed_alike=alike)
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
