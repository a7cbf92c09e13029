"""Policy-gradient losses against TRL's own method on CPU: equal where both claim the same; where not, whose is what."""

from __future__ import annotations

import warnings
from collections import defaultdict
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from agreement_cases import Accelerator, gradient, numbers
from ledger import agree, differ
from torch import Tensor

from rlkd.advantages import group_advantages
from rlkd.objectives import (
    cispo,
    clipped_surrogate,
    forward_kl_k3,
    gspo,
    local_denominator,
    reduce,
    reverse_kl_k2,
)

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # TRL's own, about versions and experimental parts
    from trl.trainer.grpo_trainer import GRPOTrainer

# TRL's method runs on a stand-in for its trainer that holds what the method reads, fed with log-probabilities.
MASK = torch.arange(6)[None] < torch.tensor([6, 3, 5, 2])[:, None]


def trl_grpo(
    loss_type: str, level: str, beta: float, inputs: dict[str, Tensor], mask: Tensor = MASK, delta: float | None = None
) -> Tensor:
    logprobs = inputs["policy_logprobs"]
    trainer = SimpleNamespace(
        _get_per_token_logps_and_entropies=lambda *_args, **_kwargs: (logprobs, torch.zeros_like(logprobs), None),
        accelerator=Accelerator(),
        args=SimpleNamespace(delta=delta, use_bias_correction_kl=False, steps_per_generation=1),
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
        "prompt_ids": torch.zeros(len(mask), 1, dtype=torch.long),
        "prompt_mask": torch.ones(len(mask), 1, dtype=torch.long),
        "completion_ids": torch.zeros_like(mask, dtype=torch.long),
        "completion_mask": mask.long(),
        "advantages": inputs["advantages"],
        "old_per_token_logps": inputs["rollout_logprobs"],
        "ref_per_token_logps": inputs["rollout_logprobs"] - 0.3,
        "num_items_in_batch": mask.sum(),
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
        ("bnpo", "token", "token"),
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


CLIP: dict[str, Any] = {"clip_low": 0.2, "clip_high": 0.28}


def test_bnpo_depends_on_the_micro_batches() -> None:
    """Whose is what: theirs gives every micro-batch the same say, ours every token, however the rows are split."""
    inputs = grpo_inputs()
    policy = inputs["policy_logprobs"]
    theirs = torch.stack(
        [
            trl_grpo("bnpo", "token", 0.0, {name: value[rows] for name, value in inputs.items()}, mask=MASK[rows])
            for rows in (slice(0, 1), slice(1, 4))
        ]
    ).mean()
    denominator = local_denominator(MASK, kind="token")
    ours = reduce(clipped_surrogate(**inputs, **CLIP), MASK, kind="token", denominator=denominator)
    whole = trl_grpo("bnpo", "token", 0.0, inputs)
    agree("bnpo loss, one micro-batch", ours, whole, 1e-6)
    differ(gradient(ours, policy), gradient(theirs, policy))
    why = "TRL averages micro-batch means, so that a token's gradient depends on its micro-batch; ours is global"
    agree(
        "bnpo loss, micro-batches of 6 and 10 tokens, gradient",
        gradient(ours, policy),
        gradient(theirs, policy),
        1.0,
        why,
    )


def test_dual_clip_is_their_delta() -> None:
    """Ratios up to e^2 with bad advantages: an upper bound on the ratio is the dual clip."""
    inputs = grpo_inputs()
    inputs["rollout_logprobs"] = inputs["policy_logprobs"].detach() - numbers(3, 4, 6).abs() * 2
    ours = reduce(clipped_surrogate(**inputs, **CLIP, dual_clip=3.0), MASK, kind="token", denominator=float(MASK.sum()))
    theirs = trl_grpo("dapo", "token", 0.0, inputs, delta=3.0)
    policy = inputs["policy_logprobs"]
    agree("dual clip, TRL's delta", ours, theirs, 1e-6)
    agree("dual clip, TRL's delta, gradient", gradient(ours, policy), gradient(theirs, policy), 1e-6)
    differ(ours, trl_grpo("dapo", "token", 0.0, inputs))


def test_sequence_ratio_with_credit_along_the_row() -> None:
    """Whose is what: in theirs every token's gradient carries the row's mean credit, in ours its own."""
    inputs = grpo_inputs()
    policy = inputs["policy_logprobs"]
    inputs["rollout_logprobs"] = policy.detach() - 0.05
    inputs["advantages"] = numbers(2, 4, 6)
    ours = reduce(gspo(**inputs, **CLIP, response_mask=MASK), MASK, kind="sequence", denominator=4.0)
    theirs = trl_grpo("grpo", "sequence", 0.0, inputs)
    agree("sequence ratio, credit along the row", ours, theirs, 1e-6)
    mine, other = gradient(ours, policy).reshape(4, 6), gradient(theirs, policy).reshape(4, 6)
    differ(mine, other)
    agree("sequence ratio, credit along the row, row sums", mine.sum(1), other.sum(1), 1e-6)
    why = "TRL's (GSPO) hands each token the row's mean credit, ours (GSPO-token) its own; equal for constant credit"
    agree("sequence ratio, credit along the row, gradient", mine, other, 1.0, why)


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


def test_leave_one_out_published_formula() -> None:
    """RLOO's inline formula re-typed, with an abstained rollout: the siblings' mean over those that have a score."""
    scores = numbers(5, 3, 4).double()
    scores[1, 2] = torch.nan
    count = (~scores.isnan()).sum(1, keepdim=True)
    theirs = (scores - (scores.nansum(1, keepdim=True) - scores) / (count - 1)).flatten()
    ids, valid = torch.arange(3).repeat_interleave(4), ~scores.flatten().isnan()
    ours = group_advantages(scores=scores.flatten(), group_ids=ids, baseline="leave_one_out", valid=valid)
    agree("leave-one-out, TRL's RLOO", ours[valid], theirs[valid], 1e-12)
