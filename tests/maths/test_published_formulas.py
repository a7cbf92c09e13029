"""Against formulas of released code that doesn't import here, re-typed: equal, or whose gradient is what."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from agreement_cases import gradient, numbers
from ledger import agree, differ
from torch import Tensor

from rlkd.advantages import soft_overlong_penalty
from rlkd.divergences import alm, divergence, forward_kl, standardise
from rlkd.objectives import forward_kl_k3, gspo, kdrl_joint

MASK = torch.arange(6)[None] < torch.tensor([6, 3, 5, 2])[:, None]


def pair() -> dict[str, Any]:
    return {
        "policy_logprobs": (-numbers(0, 4, 6).double().abs()).requires_grad_(),
        "teacher_logprobs": -numbers(1, 4, 6).double().abs(),
    }


def test_areal_joint_loss_has_no_teacher() -> None:
    """Whose is what: AReaL's joint branch back-propagates the log-ratio itself (k1), so every teacher is the same."""
    taught = pair()
    policy = taught["policy_logprobs"]
    theirs = gradient(0.5 * (policy - taught["teacher_logprobs"]).sum(), policy)
    for teacher in (taught["teacher_logprobs"], numbers(2, 4, 6).double()):
        assert theirs.equal(gradient(0.5 * (policy - teacher).sum(), policy))
    joint = kdrl_joint(policy_loss=torch.zeros_like(policy), **taught, distill_coef=0.5)
    ours = gradient(joint.sum(), policy)
    differ(ours, theirs)
    why = "AReaL's is the same for every teacher (k1 as a loss); ours is that of reverse KL (k2)"
    agree("KDRL joint loss, AReaL, gradient", ours, theirs, 9.0, why)


@pytest.mark.parametrize("credit", ["constant", "along the row"])
def test_verl_gspo(credit: str) -> None:
    """verl: log-ratio = log p - sg[log p] + sg[mean log-ratio]; the sequence's ratio with each token's own gradient."""
    policy = (-numbers(0, 4, 6).double().abs()).requires_grad_()
    rollout = policy.detach() + 0.1 * numbers(1, 4, 6).double()
    advantages = numbers(2, 4, 6 if credit != "constant" else 1).double().expand(4, 6)
    mean = ((policy - rollout) * MASK).sum(-1) / MASK.sum(-1)
    ratio = (policy - policy.detach() + mean.detach()[:, None]).clamp(max=10.0).exp()
    theirs = torch.maximum(-advantages * ratio, -advantages * ratio.clamp(0.9, 1.05))
    ours = gspo(
        policy_logprobs=policy,
        rollout_logprobs=rollout,
        advantages=advantages,
        response_mask=MASK,
        clip_low=0.1,
        clip_high=0.05,
    )
    assert 0 < int((theirs > -advantages * ratio).any(1).sum()) < 4  # some rows are clipped, some are not
    agree(f"GSPO, verl, credit {credit}", ours[MASK], theirs[MASK], 1e-14)
    got, want = (gradient(loss[MASK].sum(), policy) for loss in (ours, theirs))
    agree(f"GSPO, verl, credit {credit}, gradient", got, want, 1e-14)


def test_verl_low_var_kl() -> None:
    """verl's default penalty: k3 of a difference bounded to 20, its value to 10; the same away from the bounds."""
    taught = pair()
    difference = (taught["teacher_logprobs"] - taught["policy_logprobs"]).clamp(-20, 20)
    theirs = (difference.exp() - difference - 1).clamp(-10, 10)
    policy, ours = taught["policy_logprobs"], forward_kl_k3(**taught)
    assert theirs.max() < 10
    agree("low_var_kl, verl", ours, theirs, 1e-14)
    agree("low_var_kl, verl, gradient", gradient(ours.sum(), policy), gradient(theirs.sum(), policy), 1e-14)


def test_opsd_clipped_forward_kl() -> None:
    """OPSD: log-softmax of both sides' logits over the temperature, summands capped, then summed."""
    student, teacher = numbers(0, 8, 30).double().requires_grad_(), 3 * numbers(1, 8, 30).double()
    ls, lt = (student / 1.1).log_softmax(-1), (teacher / 1.1).log_softmax(-1)
    theirs = (lt.exp() * (lt - ls)).clamp(max=0.05).sum(-1)
    output = divergence(kind="forward_kl", policy_logits=student, teacher_logits=teacher, clip=0.05, temperature=1.1)
    assert output.clipped_share.max() > 0.1
    ours = output.per_token
    agree("OPSD, clip 0.05", ours, theirs, 1e-14)
    agree("OPSD, clip 0.05, gradient", gradient(ours.sum(), student), gradient(theirs.sum(), student), 1e-14)


def test_tokenkit_alm() -> None:
    """tokenkit: binary cross-entropy of chunk likelihoods, all of them moved 1e-6 below 0 in log space."""
    policy, teacher = (-numbers(0, 9).double().abs() * 5).requires_grad_(), -numbers(1, 9).double().abs() * 5
    u, w = teacher / 5 - 1e-6, policy / 5 - 1e-6
    theirs = -(u.exp() * w + (1 - u.exp()) * torch.log1p(-w.exp()))
    ours = alm(policy_chunks=policy, teacher_chunks=teacher, temperature=5.0, divergence="cross_entropy")
    why = "tokenkit moves every log-likelihood by 1e-6, ours only those closer than that to 0"
    agree("ALM, tokenkit", ours, theirs, 1e-4, why)
    agree("ALM, tokenkit, gradient", gradient(ours.sum(), policy), gradient(theirs.sum(), policy), 1e-4, why)


def test_released_logit_standardization() -> None:
    """The released code takes the sample's std, the paper (and ours) the population's: another temperature."""
    policy, teacher = numbers(0, 8, 20).double(), numbers(1, 8, 20).double()

    def released(logits: Tensor) -> Tensor:
        return (logits - logits.mean(-1, keepdim=True)) / (1e-7 + logits.std(-1, keepdim=True))

    theirs = forward_kl(policy_logits=released(policy) / 2, teacher_logits=released(teacher) / 2)
    ours = [
        divergence(
            kind="forward_kl", policy_logits=standardise(policy), teacher_logits=standardise(teacher), temperature=t
        ).per_token
        for t in (2.0, 2.0 * (20 / 19) ** 0.5)
    ]
    agree("logit standardization, released", ours[0], theirs, 0.1, "sample std for the paper's population std")
    agree("logit standardization, its std as temperature", ours[1], theirs, 1e-7)


def test_dapo_overlong() -> None:
    """DAPO's reward manager: min(-(length - (limit - buffer)) / buffer * factor, 0), lengths up to the limit."""
    lengths = torch.arange(0, 20481, 512)
    theirs = (-(lengths - (20480 - 4096)) / 4096 * 0.5).clamp(max=0)
    ours = soft_overlong_penalty(lengths=lengths, max_length=20480, buffer=4096, factor=0.5)
    agree("overlong penalty, DAPO", ours, theirs, 1e-7)
