"""Joint methods: pi-Distill, OPSD with a reward, RLTF, stale rollouts."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from ledger import differ, prove
from tabular import Tabular
from torch import Tensor

from rlkd.divergences import divergence, reverse_kl
from rlkd.errors import NumericsError
from rlkd.objectives import (
    clipped_surrogate,
    decoupled_surrogate,
    fresh_enough,
    k1_value,
    penalised_scores,
    pi_distill,
    reinforce,
    rltf_self_distillation,
)

FAMILY = "joint"
WORLD = Tabular()
SCORES = torch.linspace(-1, 2, len(WORLD.ids), dtype=torch.float64).cos()


def broadcast(values: Tensor) -> Tensor:
    return values[:, None].expand_as(WORLD.mask)


# --- pi-Distill ---


def test_pi_distill_terms() -> None:
    """Teacher share 1 is the privileged view's surrogate, 0 the bare view's, between them their mixture."""
    views = {"privileged_logprobs": WORLD.table(0), "bare_logprobs": WORLD.table(1)}
    inputs: dict[str, Any] = {name: WORLD.logprobs(table) for name, table in views.items()}
    inputs |= {"rollout_logprobs": WORLD.logprobs(WORLD.table(2)), "advantages": broadcast(SCORES)}
    single = {
        name: clipped_surrogate(
            policy_logprobs=inputs[name],
            rollout_logprobs=inputs["rollout_logprobs"],
            advantages=inputs["advantages"],
            clip_low=0.2,
            clip_high=0.2,
        )
        for name in views
    }
    prove(FAMILY, "pi-Distill, teacher", pi_distill(**inputs, teacher_share=1.0), single["privileged_logprobs"])
    prove(FAMILY, "pi-Distill, student", pi_distill(**inputs, teacher_share=0.0), single["bare_logprobs"])
    mixed = 0.3 * single["privileged_logprobs"] + 0.7 * single["bare_logprobs"]
    prove(FAMILY, "pi-Distill, joint", pi_distill(**inputs, teacher_share=0.3), mixed)


def test_pi_distill_student_term_is_unbiased_for_one_token() -> None:
    """E over the privileged sampler of bare / rollout * R = E over the bare view of R, clip off."""
    world = Tabular(vocabulary=5, tokens=1)
    table, rollout = world.table(0), world.table(1).detach()
    scores = torch.linspace(-1, 2, 5, dtype=torch.float64)
    loss = pi_distill(
        privileged_logprobs=world.logprobs(rollout),
        bare_logprobs=world.logprobs(table),
        rollout_logprobs=world.logprobs(rollout),
        advantages=scores[:, None],
        teacher_share=0.0,
        clip_low=math.inf,
        clip_high=math.inf,
    )
    want = world.gradient(table, (world.probabilities(table) * scores).sum())
    prove(FAMILY, "pi-Distill, student off-policy", -world.expected_gradient(table, loss, rollout), want)


def objective_with_penalty(table: Tensor, other: Tensor) -> Tensor:
    """E[R] - 0.5 KL(policy || other) of whole sequences, written out."""
    ratio = (WORLD.logprobs(table) - WORLD.logprobs(other)).sum(1)
    return (WORLD.probabilities(table) * (SCORES - 0.5 * ratio)).sum()


def test_penalty_in_the_reward_is_sequence_kl() -> None:
    """J_T and OPSD's J with the sampled log-ratio folded into the return: exact."""
    table, other = WORLD.table(0), WORLD.table(1).detach()
    logprobs = WORLD.logprobs(table)
    sampled = k1_value(policy_logprobs=logprobs, teacher_logprobs=WORLD.logprobs(other))
    scores = penalised_scores(scores=SCORES, divergence=sampled, response_mask=WORLD.mask, distill_coef=0.5)
    loss = reinforce(policy_logprobs=logprobs, advantages=broadcast(scores))
    want = WORLD.gradient(table, objective_with_penalty(table, other))
    prove(FAMILY, "KL in the reward", -WORLD.expected_gradient(table, loss), want)


def test_exact_kl_in_the_reward_misses_the_local_term() -> None:
    """The Rao-Blackwellised KL as a reward: biased by exactly the gradient of the KL at the visited prefixes."""
    table, other = WORLD.table(0), WORLD.table(1).detach()
    logprobs, fixed = WORLD.logprobs(table), WORLD.logits(other)
    exact = reverse_kl(policy_logits=WORLD.logits(table), teacher_logits=fixed)
    scores = penalised_scores(scores=SCORES, divergence=exact, response_mask=WORLD.mask, distill_coef=0.5)
    loss = reinforce(policy_logprobs=logprobs, advantages=broadcast(scores))
    truth = WORLD.gradient(table, objective_with_penalty(table, other))
    local = WORLD.gradient(
        table, WORLD.prefix_divergence(table, lambda z: reverse_kl(policy_logits=z, teacher_logits=fixed))
    )
    got = -WORLD.expected_gradient(table, loss)
    differ(got, truth)
    prove(FAMILY, "exact KL in the reward, bias", got, truth + 0.5 * local)
    both = WORLD.expected_gradient(table, loss + 0.5 * exact)
    prove(FAMILY, "exact KL in reward and loss", -both, truth)


def test_penalty_ignores_masked_slots() -> None:
    mask = torch.tensor([[True, False]])
    junk = torch.tensor([[2.0, math.nan]])
    got = penalised_scores(scores=torch.tensor([1.0]), divergence=junk, response_mask=mask, distill_coef=0.25)
    assert got.tolist() == [0.5]


# --- OPSD: one network, two contexts ---


class TwoContexts:
    """Logits = table[context] @ shared weights: the same parameters seen with and without privileged information."""

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(0)
        self.weights = torch.randn(4, 5, generator=generator, dtype=torch.float64).requires_grad_()
        self.bare = torch.randn(3, 4, generator=generator, dtype=torch.float64)
        self.privileged = torch.randn(3, 4, generator=generator, dtype=torch.float64)

    def gradient(self, teacher_weights: Tensor, teacher_context: Tensor) -> Tensor:
        loss = divergence(
            kind="forward_kl",
            policy_logits=self.bare @ self.weights,
            teacher_logits=teacher_context @ teacher_weights,
            clip=5.0,
        ).per_token
        return torch.autograd.grad(loss.sum(), self.weights)[0]


def test_opsd_with_identical_context_is_a_no_op() -> None:
    """Live teacher, same context: exactly nothing to learn."""
    net = TwoContexts()
    assert net.gradient(net.weights, net.bare).abs().max() < 1e-15
    assert net.gradient(net.weights, net.privileged).abs().max() > 0.1


def test_opsd_live_teacher_is_not_trained() -> None:
    """The live teacher's own gradient is stopped: as with a frozen copy of the same weights."""
    net = TwoContexts()
    frozen = net.weights.detach().clone()
    prove(FAMILY, "OPSD, live teacher", net.gradient(net.weights, net.privileged), net.gradient(frozen, net.privileged))


def test_opsd_teacher_choice_changes_the_gradient() -> None:
    """Frozen at the start, moving average, live: three teachers, three gradients."""
    net = TwoContexts()
    start = torch.zeros_like(net.weights)
    average = 0.9 * start + 0.1 * net.weights.detach()
    gradients = [net.gradient(w, net.privileged) for w in (start, average, net.weights)]
    differ(gradients[0], gradients[1])
    differ(gradients[1], gradients[2])


# --- RLTF ---


def test_rltf_sd_bias_is_the_missing_ratio() -> None:
    """Without ratio: E over p(y1|x1) of A grad log p(y1|x0). With it the gradient of E over p(y1|x0) of A, exactly."""
    table, critique = WORLD.table(0), WORLD.table(1).detach()
    logprobs = WORLD.logprobs(table)
    loss = rltf_self_distillation(policy_logprobs=logprobs, advantages=broadcast(SCORES))
    got = WORLD.expected_gradient(table, loss, critique)
    want = -WORLD.gradient(table, (WORLD.probabilities(critique) * SCORES * logprobs.sum(1)).sum())
    prove(FAMILY, "RLTF-SD", got, want)
    truth = -WORLD.gradient(table, (WORLD.probabilities(table) * SCORES).sum())
    differ(got, truth)
    ratio = (logprobs.sum(1) - WORLD.logprobs(critique).sum(1)).exp().detach()
    prove(FAMILY, "RLTF-SD with ratio", WORLD.expected_gradient(table, loss * ratio[:, None], critique), truth)


def test_rltf_sd_floor_does_not_hide_nan() -> None:
    logprobs = torch.tensor([[math.nan, -9.0, -1.0]])
    for floor, want in ((-math.inf, [True, False, False]), (-5.0, [True, False, False])):
        loss = rltf_self_distillation(policy_logprobs=logprobs, advantages=torch.ones(1, 3), logprob_floor=floor)
        assert loss.isnan().tolist() == [want]


def test_rltf_sd_floor() -> None:
    logprobs = torch.tensor([[-1.0, -5.0, -5.1]], dtype=torch.float64).requires_grad_()
    loss = rltf_self_distillation(
        policy_logprobs=logprobs, advantages=torch.full((1, 3), 2.0, dtype=torch.float64), logprob_floor=-5.0
    )
    want = torch.tensor([[-2.0, -2.0, 0.0]], dtype=torch.float64)
    prove(FAMILY, "RLTF-SD, floor", torch.autograd.grad(loss.sum(), logprobs)[0], want)


# --- stale rollouts ---


def test_decoupled_surrogate_is_exact_for_one_token() -> None:
    """Sampled by old weights, ratio to the proximal policy: the two factors together correct exactly, clips off."""
    world = Tabular(vocabulary=5, tokens=1)
    table, proximal, rollout = world.table(0), world.table(1).detach(), world.table(2).detach()
    scores = torch.linspace(-1, 2, 5, dtype=torch.float64)
    loss = decoupled_surrogate(
        policy_logprobs=world.logprobs(table),
        proximal_logprobs=world.logprobs(proximal),
        rollout_logprobs=world.logprobs(rollout),
        advantages=scores[:, None],
        response_mask=world.mask,
        clip_low=math.inf,
        clip_high=math.inf,
        cap=math.inf,
    )
    want = world.gradient(table, (world.probabilities(table) * scores).sum())
    prove(FAMILY, "decoupled, off-policy", -world.expected_gradient(table, loss, rollout), want)


def test_decoupled_surrogate_without_lag_is_the_surrogate() -> None:
    old = WORLD.logprobs(WORLD.table(1)).detach()
    inputs: dict[str, Any] = {
        "policy_logprobs": WORLD.logprobs(WORLD.table(0)),
        "rollout_logprobs": old,
        "advantages": broadcast(SCORES),
        "clip_low": 0.2,
        "clip_high": 0.2,
    }
    got = decoupled_surrogate(**inputs, proximal_logprobs=old, response_mask=WORLD.mask, cap=2.0)
    prove(FAMILY, "decoupled, no lag", got, clipped_surrogate(**inputs))


def test_fresh_enough() -> None:
    versions = torch.tensor([3, 5, 8, 10])
    assert fresh_enough(rollout_versions=versions, policy_version=10, max_staleness=5).tolist() == [
        False,
        True,
        True,
        True,
    ]
    assert fresh_enough(rollout_versions=versions, policy_version=10, max_staleness=0).tolist() == [
        False,
        False,
        False,
        True,
    ]


@pytest.mark.usefixtures("unchecked")
def test_bad_joint_input_is_refused() -> None:
    good, mask = torch.zeros(2, 3), torch.ones(2, 3, dtype=torch.bool)
    with pytest.raises(NumericsError, match="teacher_share"):
        pi_distill(
            privileged_logprobs=good, bare_logprobs=good, rollout_logprobs=good, advantages=good, teacher_share=1.1
        )
    with pytest.raises(NumericsError, match="distill_coef"):
        penalised_scores(scores=good[:, 0], divergence=good, response_mask=mask, distill_coef=-1.0)
    with pytest.raises(NumericsError, match="one entry a row"):
        penalised_scores(scores=good[0], divergence=good, response_mask=mask, distill_coef=1.0)
    with pytest.raises(NumericsError, match="logprob_floor"):
        rltf_self_distillation(policy_logprobs=good, advantages=good, logprob_floor=1.0)
    with pytest.raises(NumericsError, match="max_staleness"):
        fresh_enough(rollout_versions=torch.tensor([1]), policy_version=1, max_staleness=-1)
    with pytest.raises(NumericsError, match="after the policy"):
        fresh_enough(rollout_versions=torch.tensor([2]), policy_version=1, max_staleness=1)
