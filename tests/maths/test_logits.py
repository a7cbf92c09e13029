"""Logit losses and teacher mixtures: standardised, listwise, dual-head, committees, TGeo."""

from __future__ import annotations

import math

import pytest
import torch
from divergence_cases import logits
from ledger import differ, prove
from torch import Tensor

from rlkd.divergences import (
    aligned_gradient,
    bucketed,
    forward_kl,
    log_cosh_matching,
    mix_teachers,
    plackett_luce,
    prior_weights,
    standardise,
    standardise_to_teacher,
    top_support,
    trilateral_features,
    trilateral_weights,
)
from rlkd.errors import NumericsError

FAMILY = "logits and teachers"


# --- standardised ---


def test_standardise_is_shift_and_scale_free() -> None:
    """Any affine copy of the teacher is as good as the teacher: loss exactly 0, in both forms."""
    teacher = logits(0)
    policy = 3.7 * teacher - 12.0
    prove(FAMILY, "standardise", standardise(policy), standardise(teacher), 1e-12)
    prove(FAMILY, "standardise_to_teacher", standardise_to_teacher(policy, teacher), teacher, 1e-12)
    moments = standardise(policy)
    assert moments.mean(-1).abs().max() < 1e-14
    prove(FAMILY, "standardise, spread", moments.square().mean(-1), torch.ones(4, dtype=torch.float64), 1e-12)


def test_standardise_to_teacher_takes_its_moments() -> None:
    policy, teacher = logits(1), logits(2)
    got = standardise_to_teacher(policy, teacher)
    prove(FAMILY, "anchored mean", got.mean(-1), teacher.mean(-1))
    prove(FAMILY, "anchored spread", got.std(-1), teacher.std(-1))
    differ(got, teacher)


@pytest.mark.parametrize("anchored", [False, True])
def test_standardised_gradients(anchored: bool) -> None:
    teacher = logits(2)
    valid = torch.tensor([True, True, False, True, True, True]).expand(4, 6)

    def loss(policy: Tensor) -> Tensor:
        if anchored:
            z, target = standardise_to_teacher(policy, teacher, valid), teacher.masked_fill(~valid, -torch.inf)
        else:
            z, target = standardise(policy, valid) / 2, standardise(teacher, valid) / 2
        return forward_kl(policy_logits=z, teacher_logits=target)

    policy = logits(1).requires_grad_()
    assert torch.autograd.gradcheck(loss, policy)
    assert torch.autograd.grad(loss(policy).sum(), policy)[0][:, 2].abs().max() == 0


def test_vocabulary_padding_does_not_enter_the_statistics() -> None:
    valid = torch.arange(6).expand(4, 6) < 4
    junk = logits(1).masked_fill(~valid, math.nan)
    prove(FAMILY, "standardise, padding", standardise(junk, valid)[:, :4], standardise(logits(1)[:, :4]), 1e-12)
    assert standardise(junk, valid)[:, 4:].eq(-torch.inf).all()
    teacher = logits(2)
    got = standardise_to_teacher(junk, teacher.masked_fill(~valid, 1e9), valid)[:, :4]
    prove(FAMILY, "anchored, padding", got, standardise_to_teacher(logits(1)[:, :4], teacher[:, :4]), 1e-12)


def test_equal_logits_have_finite_gradients() -> None:
    policy = torch.zeros(2, 5, dtype=torch.float64).requires_grad_()
    loss = forward_kl(policy_logits=standardise(policy, std_floor=0.1), teacher_logits=logits(0, 2, 5)).sum()
    assert torch.autograd.grad(loss, policy)[0].isfinite().all()


def test_whole_vocabulary_is_refused() -> None:
    """Why: a teacher sure to 0.999 at V = 150,000 keeps at most 5% after plain z-scores; the anchored form keeps it."""
    with pytest.raises(NumericsError, match="whole vocabulary"):
        standardise(torch.zeros(2, 1025))
    teacher = 2.5 * torch.randn(150_000, generator=torch.Generator().manual_seed(0))
    teacher[0] = teacher[1:].logsumexp(0) + math.log(999)
    plain = ((teacher - teacher.mean()) / teacher.std()).softmax(0)[0]
    assert teacher.softmax(0)[0] > 0.998
    assert plain < 0.05
    anchored = standardise_to_teacher(0.5 * teacher[None] + 3, teacher[None])
    assert anchored.softmax(-1)[0, 0] > 0.998


# --- Plackett-Luce ---


def test_plackett_luce_by_hand() -> None:
    policy, teacher = torch.tensor([0.3, -1.0, 0.8]), torch.tensor([0.1, 2.0, 1.0])
    p, q = policy.tolist(), teacher.double().softmax(0).tolist()
    order = [1, 2, 0]
    want = sum(q[v] * (math.log(sum(math.exp(p[w]) for w in order[k:])) - p[v]) for k, v in enumerate(order))
    got = plackett_luce(policy_logits=policy.double()[None], teacher_logits=teacher.double()[None])
    prove(FAMILY, "plackett_luce", got, torch.tensor([want], dtype=torch.float64), 1e-7)  # float32 literals in p


def test_plackett_luce_limits() -> None:
    """A sharp teacher leaves cross-entropy on its best entry, or on the gold one put first; shifts change nothing."""
    policy, teacher = logits(0), logits(1)
    best = teacher.argmax(-1)
    cross = -policy.log_softmax(-1).gather(-1, best[:, None]).squeeze(-1)
    got = plackett_luce(policy_logits=policy, teacher_logits=teacher, temperature=1e-3)
    prove(FAMILY, "plackett_luce, sharp", got, cross, 1e-9)
    gold = torch.tensor([0, 1, 2, 3])
    sharp = torch.zeros(4, 6, dtype=torch.float64).scatter(1, gold[:, None], 60.0)
    got = plackett_luce(policy_logits=policy, teacher_logits=sharp, first=gold)
    prove(FAMILY, "plackett_luce, gold", got, -policy.log_softmax(-1).gather(-1, gold[:, None]).squeeze(-1), 1e-9)
    shifted = plackett_luce(policy_logits=policy + 5, teacher_logits=teacher - 3)
    prove(FAMILY, "plackett_luce, shift", shifted, plackett_luce(policy_logits=policy, teacher_logits=teacher))


def test_plackett_luce_puts_gold_first() -> None:
    """The gold entry's term has the whole list in its denominator, whatever rank the teacher gives it."""
    policy, teacher = torch.tensor([[0.5, 0.1, -0.4]]).double(), torch.tensor([[0.0, 1.0, 2.0]]).double()
    got = plackett_luce(policy_logits=policy, teacher_logits=teacher, first=torch.tensor([0]))
    q, p = teacher.softmax(-1)[0], policy[0]
    want = q[0] * (p.logsumexp(0) - p[0]) + q[2] * (p[1:].logsumexp(0) - p[2])
    prove(FAMILY, "plackett_luce, gold first", got, want[None])


def test_plackett_luce_rest() -> None:
    """On a support with the rest in every denominator: the first term is cross-entropy over the whole vocabulary."""
    policy, teacher = logits(0, 4, 9), logits(1, 4, 9)
    support = top_support(teacher, k=4)
    buckets = bucketed(policy, support)
    got = plackett_luce(
        policy_logits=buckets[:, :-1],
        teacher_logits=teacher.gather(-1, support.ids),
        policy_rest=buckets[:, -1],
        temperature=1e-3,
    )
    cross = -policy.log_softmax(-1).gather(-1, teacher.argmax(-1, keepdim=True)).squeeze(-1)
    prove(FAMILY, "plackett_luce, rest", got, cross, 1e-9)


def test_plackett_luce_of_impossible_entries() -> None:
    """Entries that teacher and policy rule out: as if the support ended before them, in value and gradient."""
    outside = torch.arange(6) >= 4
    policy = logits(0).requires_grad_()
    masked = logits(0).masked_fill(outside, -torch.inf).requires_grad_()
    got = plackett_luce(policy_logits=masked, teacher_logits=logits(1).masked_fill(outside, -torch.inf))
    want = plackett_luce(policy_logits=policy[:, :4], teacher_logits=logits(1)[:, :4])
    prove(FAMILY, "plackett_luce, impossible entries", got, want)
    (slope,), (expected,) = torch.autograd.grad(got.sum(), masked), torch.autograd.grad(want.sum(), policy)
    prove(FAMILY, "plackett_luce, impossible entries, gradient", slope, expected)


def test_plackett_luce_gradient() -> None:
    teacher = logits(1).requires_grad_()
    policy = logits(0).requires_grad_()
    assert torch.autograd.gradcheck(lambda p: plackett_luce(policy_logits=p, teacher_logits=teacher.detach()), policy)
    loss = plackett_luce(policy_logits=policy, teacher_logits=teacher).sum()
    assert torch.autograd.grad(loss, teacher, allow_unused=True)[0] is None


# --- dual head ---


def test_log_cosh_is_the_papers_binary_kl() -> None:
    """sum_k KL(1/2 || sigmoid(d_k / T)) T^2 of centred logits, over K."""
    ours, theirs = logits(0), logits(1)
    d = (ours - ours.mean(-1, keepdim=True)) - (theirs - theirs.mean(-1, keepdim=True))
    s = torch.sigmoid(d / 2)
    want = 4 * (0.5 * torch.log(0.5 / s) + 0.5 * torch.log(0.5 / (1 - s))).mean(-1)
    prove(FAMILY, "log_cosh_matching", log_cosh_matching(auxiliary_logits=ours, teacher_logits=theirs), want)


def test_log_cosh_is_shift_free() -> None:
    ours, theirs = logits(0).requires_grad_(), logits(1).requires_grad_()
    valid = torch.arange(6).expand(4, 6) < 5
    loss = log_cosh_matching(auxiliary_logits=ours + 7, teacher_logits=theirs - 2, valid=valid)
    small = log_cosh_matching(auxiliary_logits=ours[:, :5], teacher_logits=theirs[:, :5])
    prove(FAMILY, "log_cosh_matching, shift", loss, small)
    assert torch.autograd.grad(loss.sum(), theirs, allow_unused=True)[0] is None
    far = log_cosh_matching(auxiliary_logits=1e6 * logits(0), teacher_logits=logits(1))
    assert far.isfinite().all()


def test_aligned_gradient() -> None:
    main = torch.tensor([1.0, 0.0]).double()
    assert aligned_gradient(auxiliary=torch.tensor([0.5, 2.0]).double(), main=main).tolist() == [0.5, 2.0]
    assert aligned_gradient(auxiliary=torch.tensor([-0.5, 2.0]).double(), main=main).tolist() == [0.0, 2.0]
    assert aligned_gradient(auxiliary=torch.tensor([-3.0, 1.0]).double(), main=3 * main).tolist() == [0.0, 1.0]
    assert aligned_gradient(auxiliary=main, main=torch.zeros(2).double()).equal(main)


# --- several teachers ---


def test_mix_teachers_by_hand() -> None:
    teachers = torch.stack([logits(0), logits(1)])
    weights = torch.tensor([0.3, 0.7], dtype=torch.float64)
    p = teachers.softmax(-1)
    prove(FAMILY, "arithmetic mean", mix_teachers(teachers, weights=weights).exp(), 0.3 * p[0] + 0.7 * p[1])
    power = p[0] ** 0.3 * p[1] ** 0.7
    got = mix_teachers(teachers, weights=weights, mean="geometric").exp()
    prove(FAMILY, "geometric mean", got, power / power.sum(-1, keepdim=True))


@pytest.mark.parametrize("mean", ["arithmetic", "geometric"])
def test_mixing_one_teacher_changes_nothing(mean: str) -> None:
    """Alone, or beside one of weight 0 whose distribution even holds zeros."""
    other = logits(1).masked_fill(torch.arange(6) == 2, -torch.inf)
    for teachers, weights in ((logits(0)[None], [1.0]), (torch.stack([logits(0), other]), [1.0, 0.0])):
        got = mix_teachers(teachers, weights=torch.tensor(weights).double(), mean=mean)  # type: ignore[arg-type]
        prove(FAMILY, f"one teacher, {mean}", got, logits(0).log_softmax(-1))
    trained = logits(0)[None].requires_grad_()
    assert not mix_teachers(trained, weights=torch.ones(1).double(), mean=mean).requires_grad  # type: ignore[arg-type]


def test_prior_weights() -> None:
    """softmax(accuracy in percent / 5)."""
    got = prior_weights(torch.tensor([0.80, 0.85, 0.70], dtype=torch.float64))
    want = torch.tensor([80.0, 85.0, 70.0], dtype=torch.float64).div(5).softmax(0)
    prove(FAMILY, "prior_weights", got, want)


# --- TGeo ---


def test_trilateral_features() -> None:
    s, t, g, m = (torch.tensor([row], dtype=torch.float64) for row in ([1.0, 0.0], [0.5, 0.5], [0.0, 1.0], [0.2, 0.8]))
    got = trilateral_features(policy_probs=s, teacher_probs=t, target_probs=g, teacher_mean_probs=m)
    want = [2 * 0.25, 2 * 1.0, 2 * 0.25, 2 * 0.64, 2 * 0.09, 2 * 0.04]
    prove(FAMILY, "trilateral_features", got, torch.tensor([want], dtype=torch.float64))


def test_trilateral_weights() -> None:
    network = {
        "first_weight": logits(0, 3, 6),
        "first_bias": logits(1, 3),
        "second_weight": logits(2, 3),
        "second_bias": torch.tensor(0.1).double(),
    }
    features = logits(3, 5, 6)
    hidden = (features @ network["first_weight"].T + network["first_bias"]).clamp(min=0)
    want = 1 / (1 + (-(hidden @ network["second_weight"]) - 0.1).exp())
    prove(FAMILY, "trilateral_weights", trilateral_weights(features, **network), want, 1e-8)


def test_trilateral_weight_learns_to_distrust_a_wrong_teacher() -> None:
    """Held-out loss of the mixture w * teacher loss + (1 - w) * gold: the weight falls where the teacher is wrong."""
    gold = torch.nn.functional.one_hot(torch.arange(40) % 2, 2).double()
    right = (torch.arange(40) % 4 < 2)[:, None]
    teacher = (0.9 * gold + 0.05).where(right, 0.9 * (1 - gold) + 0.05)
    policy = torch.full_like(gold, 0.5)
    features = trilateral_features(
        policy_probs=policy,
        teacher_probs=teacher,
        target_probs=gold,
        teacher_mean_probs=teacher.mean(0).expand_as(gold),
    )
    generator = torch.Generator().manual_seed(0)
    network = {
        "first_weight": torch.randn(8, 6, generator=generator, dtype=torch.float64).requires_grad_(),
        "first_bias": torch.zeros(8, dtype=torch.float64).requires_grad_(),
        "second_weight": torch.randn(8, generator=generator, dtype=torch.float64).requires_grad_(),
        "second_bias": torch.zeros((), dtype=torch.float64).requires_grad_(),
    }
    optimizer = torch.optim.Adam(network.values(), lr=0.05)
    for _ in range(60):
        weights = trilateral_weights(features, **network)
        # one step of the policy's logits on the mixture, seen from the gold label: the outer objective
        target = weights[:, None] * teacher + (1 - weights[:, None]) * gold
        stepped = policy.log() + 1.0 * (target - policy)
        outer = -(gold * stepped.log_softmax(-1)).sum(-1).mean() - 0.02 * weights.log().mean()
        optimizer.zero_grad()
        outer.backward()
        optimizer.step()
    weights = trilateral_weights(features, **network).detach()
    assert weights[right[:, 0]].mean() > weights[~right[:, 0]].mean() + 0.2


@pytest.mark.usefixtures("unchecked")
def test_bad_logit_input_is_refused() -> None:
    good = torch.zeros(2, 3)
    with pytest.raises(NumericsError, match="same shape"):
        standardise_to_teacher(good, good[:, :2])
    with pytest.raises(NumericsError, match="std_floor"):
        standardise(good, std_floor=0.0)
    with pytest.raises(NumericsError, match="temperature"):
        plackett_luce(policy_logits=good, teacher_logits=good, temperature=0.0)
    with pytest.raises(NumericsError, match="same shape"):
        plackett_luce(policy_logits=good, teacher_logits=good, first=torch.tensor([0]))
    with pytest.raises(NumericsError, match="temperature"):
        log_cosh_matching(auxiliary_logits=good, teacher_logits=good, temperature=-1.0)
    for weights in ([0.5, 0.6], [1.5, -0.5]):
        with pytest.raises(NumericsError, match="sum to 1"):
            mix_teachers(torch.zeros(2, 3), weights=torch.tensor(weights))
    with pytest.raises(NumericsError, match="one weight a teacher"):
        mix_teachers(torch.zeros(2, 3), weights=torch.ones(1))
    with pytest.raises(NumericsError, match="mean is"):
        mix_teachers(torch.zeros(1, 3), weights=torch.ones(1), mean="harmonic")  # type: ignore[arg-type]
    with pytest.raises(NumericsError, match="accuracies"):
        prior_weights(torch.tensor([80.0]))
    with pytest.raises(NumericsError, match="temperature"):
        prior_weights(torch.tensor([0.8]), temperature=0.0)
