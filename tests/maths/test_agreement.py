"""Divergences against TRL's own code on CPU: equal where both claim the same; where not, what each computes."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from agreement_cases import gradient, numbers
from ledger import agree

from rlkd.divergences import (
    Support,
    bucketed,
    chunked_divergence,
    divergence,
    forward_kl,
    jensen_shannon,
    reverse_kl,
    top_support,
)
from rlkd.objectives import additive_advantage, reinforce, reverse_kl_k2

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # TRL's own, about versions and experimental parts
    from trl.experimental.gkd.gkd_trainer import GKDTrainer
    from trl.experimental.sdpo import loss_utils as sdpo
    from trl.kernels.chunked_divergence import ChunkedDivergenceFunction


def named(beta: float) -> dict[str, Any]:
    kind = {0.0: "forward_kl", 1.0: "reverse_kl"}.get(beta, "jensen_shannon")
    return {"kind": kind, "mixture_weight": beta if kind == "jensen_shannon" else None}


@pytest.mark.parametrize("beta", [0.0, 0.1, 0.5, 0.9, 1.0])
def test_generalised_jensen_shannon(beta: float) -> None:
    policy, teacher = numbers(0, 3, 5, 50).requires_grad_(), numbers(1, 3, 5, 50)
    ours = divergence(policy_logits=policy, teacher_logits=teacher, temperature=0.7, **named(beta)).per_token.sum() / 15
    theirs = GKDTrainer.generalized_jsd_loss(
        policy, teacher, labels=torch.zeros(3, 5, dtype=torch.long), beta=beta, temperature=0.7
    )
    agree(f"GKD JSD, beta {beta}", ours, theirs, 1e-6)
    agree(f"GKD JSD, beta {beta}, gradient", gradient(ours, policy), gradient(theirs, policy), 1e-7)


@pytest.mark.parametrize("beta", [0.0, 0.5, 1.0])
def test_chunked_divergence(beta: float) -> None:
    hidden, weight = numbers(0, 40, 16).requires_grad_(), numbers(1, 300, 16).requires_grad_()
    teacher, teacher_weight = numbers(2, 40, 24), numbers(3, 300, 24)
    ours = chunked_divergence(
        hidden=hidden,
        head_weight=weight,
        teacher_hidden=teacher,
        teacher_head_weight=teacher_weight,
        temperature=1.3,
        chunk_size=7,
        **named(beta),
    ).per_token
    theirs, _ = ChunkedDivergenceFunction.apply(hidden, weight, None, teacher, teacher_weight, None, beta, 1.3)
    agree(f"chunked divergence, beta {beta}", ours, theirs, 2e-5)
    got, want = (gradient(x.sum(), hidden, weight) for x in (ours, theirs))
    agree(f"chunked divergence, beta {beta}, gradient", got, want, 2e-4)


@pytest.mark.parametrize("alpha", [0.0, 0.5, 1.0])
def test_top_k_with_a_tail(alpha: float) -> None:
    """TRL takes the tail as 1 - sum, and at least 1e-7; ours is summed. The same where the tail isn't tiny."""
    policy, teacher = numbers(0, 8, 40).requires_grad_(), numbers(1, 8, 40)
    support = top_support(policy.detach(), k=5)
    ours = divergence(
        policy_logits=bucketed(policy, support), teacher_logits=bucketed(teacher, support), **named(alpha)
    ).per_token
    theirs = sdpo.compute_topk_self_distillation_loss(
        policy, teacher, distillation_topk=5, distillation_alpha=alpha, distillation_add_tail=True
    )
    agree(f"top-k with tail, alpha {alpha}", ours, theirs, 1e-5)
    agree(
        f"top-k with tail, alpha {alpha}, gradient", gradient(ours.sum(), policy), gradient(theirs.sum(), policy), 1e-5
    )


def test_a_tiny_tail_differs() -> None:
    """A policy sure to 1 - e^-30: TRL's tail bucket is 1e-7, 3e6 times the true mass."""
    policy = torch.tensor([[30.0, 0.0, -torch.inf]], dtype=torch.float32)
    exact = bucketed(policy, Support(torch.tensor([[0]]), torch.tensor([[True]])))[0, 1]
    theirs = sdpo.add_tail_bucket(policy.log_softmax(-1)[:, :1])[0, 1]
    agree("tail of mass e^-30, log", exact, theirs, 20.0, "TRL floors the tail at 1e-7; ours is exact")
    assert exact.item() == pytest.approx(-30, abs=1e-4)


def test_sampled_token_distillation() -> None:
    """TRL's sampled-token loss is the log-ratio as detached credit: the gradient of additive_advantage and of k2."""
    logits, teacher = numbers(0, 2, 6, 30).requires_grad_(), numbers(1, 2, 6, 30)
    ids = torch.arange(12).reshape(2, 6)
    theirs = sdpo.compute_sampled_token_self_distillation_loss(logits, teacher, ids, distillation_alpha=1.0).sum()
    logprobs, taught = (x.log_softmax(-1).gather(-1, ids[..., None]).squeeze(-1) for x in (logits, teacher))
    inputs = {"policy_logprobs": logprobs, "teacher_logprobs": taught}
    credit = additive_advantage(advantages=torch.zeros(2, 6), distill_coef=1.0, **inputs)
    ours = reinforce(policy_logprobs=logprobs, advantages=credit).sum()
    agree("sampled-token distillation", ours, theirs, 1e-5)
    agree("sampled-token, gradient", gradient(ours, logits), gradient(theirs, logits), 1e-6)
    agree(
        "sampled-token, gradient of k2", gradient(reverse_kl_k2(**inputs).sum(), logits), gradient(theirs, logits), 1e-6
    )


def test_full_self_distillation() -> None:
    policy, teacher = numbers(0, 8, 40), numbers(1, 8, 40)
    inputs = {"policy_logits": policy, "teacher_logits": teacher}
    for alpha, function in ((0.0, forward_kl), (0.5, jensen_shannon), (1.0, reverse_kl)):
        theirs = sdpo.compute_full_logit_self_distillation_loss(policy, teacher, distillation_alpha=alpha)
        agree(f"SDPO full vocabulary, alpha {alpha}", function(**inputs), theirs, 1e-5)  # type: ignore[operator]
