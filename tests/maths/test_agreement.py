"""Against TRL's own code on CPU: equal where both claim the same; where not, by whose gradient is what."""

from __future__ import annotations

import warnings
from collections import defaultdict
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from ledger import agree, differ
from torch import Tensor

from rlkd.advantages import group_advantages
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
from rlkd.objectives import (
    additive_advantage,
    cispo,
    clipped_surrogate,
    forward_kl_k3,
    gspo,
    local_denominator,
    reduce,
    reinforce,
    reverse_kl_k2,
    simpo,
)

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # TRL's own, about versions and experimental parts
    from trl.experimental.cpo.cpo_trainer import CPOTrainer
    from trl.experimental.gkd.gkd_trainer import GKDTrainer
    from trl.experimental.sdpo import loss_utils as sdpo
    from trl.kernels.chunked_divergence import ChunkedDivergenceFunction
    from trl.trainer.grpo_trainer import GRPOTrainer


def numbers(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def named(beta: float) -> dict[str, Any]:
    kind = {0.0: "forward_kl", 1.0: "reverse_kl"}.get(beta, "jensen_shannon")
    return {"kind": kind, "mixture_weight": beta if kind == "jensen_shannon" else None}


def gradient(loss: Tensor, *of: Tensor) -> Tensor:
    return torch.cat([g.flatten() for g in torch.autograd.grad(loss, of, retain_graph=True)])


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


# --- GRPO's loss: TRL's method on a stand-in for its trainer, fed log-probabilities ---

MASK = torch.arange(6)[None] < torch.tensor([6, 3, 5, 2])[:, None]


class Accelerator:
    num_processes = 1

    def gather(self, values: Tensor, reduction: str = "") -> Tensor:
        del reduction  # one process: nothing to add up
        return values

    gather_for_metrics = gather
    reduce = gather


def trl_grpo(loss_type: str, level: str, beta: float, inputs: dict[str, Tensor]) -> Tensor:
    logprobs = inputs["policy_logprobs"]
    trainer = SimpleNamespace(
        _get_per_token_logps_and_entropies=lambda *_args, **_kwargs: (logprobs, torch.zeros_like(logprobs), None),
        accelerator=Accelerator(),
        args=SimpleNamespace(delta=None, use_bias_correction_kl=False, steps_per_generation=1),
        aux_loss_enabled=False,
        beta=beta,
        current_gradient_accumulation_steps=1,
        epsilon_low=0.2,
        epsilon_high=1.28 if loss_type == "cispo" else 0.28,  # for cispo the bound itself, not a distance
        importance_sampling_level=level,
        loss_type=loss_type,
        max_completion_length=6,
        model=SimpleNamespace(training=True),
        off_policy_mask_threshold=None,
        top_entropy_quantile=1.0,
        use_vllm=False,
        _entropy_bonus_enabled=False,
        _metrics=defaultdict(lambda: defaultdict(list)),
    )
    batch = {
        "prompt_ids": torch.zeros(4, 1, dtype=torch.long),
        "prompt_mask": torch.ones(4, 1, dtype=torch.long),
        "completion_ids": torch.zeros(4, 6, dtype=torch.long),
        "completion_mask": MASK.long(),
        "advantages": inputs["advantages"][:, 0],
        "old_per_token_logps": inputs["rollout_logprobs"],
        "ref_per_token_logps": inputs["rollout_logprobs"] - 0.3,
        "num_items_in_batch": MASK.sum(),
    }
    loss: Tensor = GRPOTrainer._compute_loss(trainer, None, batch)
    return loss


def grpo_inputs() -> dict[str, Any]:
    return {
        "policy_logprobs": (-numbers(0, 4, 6).abs()).requires_grad_(),
        "rollout_logprobs": -numbers(0, 4, 6).abs() + 0.3 * numbers(1, 4, 6),
        "advantages": numbers(2, 4, 1).expand(4, 6),
    }


@pytest.mark.parametrize(
    ("loss_type", "level", "kind"),
    [
        ("grpo", "token", "sequence"),
        ("dapo", "token", "token"),
        ("dr_grpo", "token", "constant"),
        ("cispo", "token", "token"),
        ("grpo", "sequence", "sequence"),
    ],
)
def test_grpo_family(loss_type: str, level: str, kind: Any) -> None:
    inputs = grpo_inputs()
    clip: dict[str, Any] = {"clip_low": 0.2, "clip_high": 0.28}
    if level == "sequence":
        per_token = gspo(**inputs, **clip, response_mask=MASK)
    elif loss_type == "cispo":
        per_token = cispo(**inputs, clip_low=1.0, clip_high=0.28)
    else:
        per_token = clipped_surrogate(**inputs, **clip)
    denominator = local_denominator(MASK, kind=kind, constant_length=6 if kind == "constant" else None)
    ours = reduce(per_token, MASK, kind=kind, denominator=denominator)
    theirs = trl_grpo(loss_type, level, 0.0, inputs)
    policy = inputs["policy_logprobs"]
    agree(f"{loss_type} loss, {level} level", ours, theirs, 1e-6)
    agree(f"{loss_type} loss, {level} level, gradient", gradient(ours, policy), gradient(theirs, policy), 1e-6)


def test_grpo_reference_penalty_is_k3() -> None:
    """TRL penalises by k3: equal to ours, and its gradient is forward KL's, not the reverse KL that it estimates."""
    inputs = grpo_inputs()
    policy, reference = inputs["policy_logprobs"], inputs["rollout_logprobs"] - 0.3
    theirs = trl_grpo("dapo", "token", 0.04, inputs) - trl_grpo("dapo", "token", 0.0, inputs)
    penalty = {
        f.__name__: 0.04
        * reduce(
            f(policy_logprobs=policy, teacher_logprobs=reference), MASK, kind="token", denominator=float(MASK.sum())
        )
        for f in (forward_kl_k3, reverse_kl_k2)
    }
    agree("reference penalty, k3", penalty["forward_kl_k3"], theirs, 1e-6)
    agree("reference penalty, k3, gradient", gradient(penalty["forward_kl_k3"], policy), gradient(theirs, policy), 1e-7)
    other = gradient(penalty["reverse_kl_k2"], policy)
    differ(other, gradient(theirs, policy), at_least=1e-5)
    why = "TRL's k3 follows forward KL, our k2 the reverse KL that both report"
    agree("reference penalty, k2 for k3, gradient", other, gradient(theirs, policy), 1.0, why)


def test_group_advantages_published_formula() -> None:
    """TRL's inline formula re-typed: (r - mean) / (std + 1e-4). Ours floors instead of adding: it differs by that."""
    scores = numbers(5, 3, 4).double()
    std = scores.std(1, keepdim=True)
    theirs = ((scores - scores.mean(1, keepdim=True)) / (std + 1e-4)).flatten()
    ids = torch.arange(3).repeat_interleave(4)
    ours = group_advantages(scores=scores.flatten(), group_ids=ids, scale="std")
    agree("group advantages, std", ours, theirs, 1e-3, "TRL divides by std + 1e-4, we by max(std, floor)")
    factor = (std / (std + 1e-4)).expand(3, 4).flatten()
    agree("group advantages, their epsilon applied", ours * factor, theirs, 1e-12)


def test_simpo() -> None:
    chosen, rejected = numbers(0, 5), numbers(1, 5)
    trainer = SimpleNamespace(
        alpha=0.0,
        beta=2.0,
        simpo_gamma=1.5,
        label_smoothing=0.0,
        loss_type="simpo",
        accelerator=SimpleNamespace(device=torch.device("cpu")),
    )
    theirs = CPOTrainer.cpo_loss(trainer, chosen, rejected)[0]
    ours = simpo(chosen=chosen, rejected=rejected, inverse_temperature=2.0, margin=1.5)
    agree("SimPO", ours, theirs, 1e-6)


def test_full_self_distillation() -> None:
    policy, teacher = numbers(0, 8, 40), numbers(1, 8, 40)
    inputs = {"policy_logits": policy, "teacher_logits": teacher}
    for alpha, function in ((0.0, forward_kl), (0.5, jensen_shannon), (1.0, reverse_kl)):
        theirs = sdpo.compute_full_logit_self_distillation_loss(policy, teacher, distillation_alpha=alpha)
        agree(f"SDPO full vocabulary, alpha {alpha}", function(**inputs), theirs, 1e-5)  # type: ignore[operator]
