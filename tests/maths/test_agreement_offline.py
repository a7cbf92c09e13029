"""Preference losses against TRL's own code on CPU, from per-token log-probabilities to the gradient."""

from __future__ import annotations

import warnings
from collections import defaultdict
from types import SimpleNamespace

import pytest
import torch
from agreement_cases import Accelerator, gradient, numbers
from ledger import agree, differ
from torch import Tensor

from rlkd.objectives import dpo, redi, reduce, sequence_logprobs, simpo

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # TRL's own, about versions and experimental parts
    from trl.experimental.cpo.cpo_trainer import CPOTrainer
    from trl.trainer.dpo_trainer import DPOTrainer

# Three chosen rows, then their three rejected ones; position 0 is the prompt.
MASK = torch.arange(7)[None] < torch.tensor([7, 4, 5, 3, 6, 2])[:, None]
MASK[:, 0] = False
PAIRS = 3


def trl_dpo(logprobs: Tensor, reference: Tensor, beta: float, loss_type: str = "sigmoid") -> Tensor:
    """TRL's method on a stand-in for its trainer; the model's output is given, not computed."""
    given = logprobs.where(MASK, 0.0)[:, 1:]  # its fused head gives 0 outside the completion
    nothing = torch.zeros_like(given.detach())
    output = SimpleNamespace(log_probs=given, entropy=nothing, mean_logits=nothing, is_top1=nothing.bool())
    model = type("Model", (), {"training": True, "__call__": lambda *_args, **_kwargs: output})()
    trainer = SimpleNamespace(
        accelerator=Accelerator(),
        args=SimpleNamespace(gradient_checkpointing_kwargs=None),
        aux_loss_enabled=False,
        beta=beta,
        f_divergence_type="reverse_kl",
        ld_alpha=None,
        loss_types=[loss_type],
        loss_weights=[1.0],
        model=model,
        precompute_ref_logps=True,
        use_weighting=False,
        _metrics=defaultdict(lambda: defaultdict(list)),
        _total_train_tokens=0,
        _tp_size=1,
    )
    sums = reference.where(MASK, 0.0).sum(1)
    batch = {
        "input_ids": torch.zeros_like(MASK, dtype=torch.long),
        "attention_mask": torch.ones_like(MASK, dtype=torch.long),
        "completion_mask": MASK.long(),
        "ref_chosen_logps": sums[:PAIRS],
        "ref_rejected_logps": sums[PAIRS:],
    }
    loss: Tensor = DPOTrainer._compute_loss(trainer, model, batch, False)
    return loss


def summed(logprobs: Tensor, *, mean: bool = False) -> tuple[Tensor, Tensor]:
    chosen, rejected = sequence_logprobs(policy_logprobs=logprobs, response_mask=MASK, length_normalised=mean).chunk(2)
    return chosen, rejected


@pytest.mark.parametrize("beta", [0.01, 0.1, 1.0])
def test_dpo(beta: float) -> None:
    logprobs, reference = -numbers(0, 6, 7).abs(), -numbers(1, 6, 7).abs()
    policy = logprobs.requires_grad_()
    chosen, rejected = summed(policy)
    reference_chosen, reference_rejected = summed(reference)
    ours = dpo(
        chosen=chosen,
        rejected=rejected,
        reference_chosen=reference_chosen,
        reference_rejected=reference_rejected,
        inverse_temperature=beta,
    ).mean()
    theirs = trl_dpo(policy, reference, beta)
    agree(f"DPO, beta {beta}", ours, theirs, 1e-6)
    agree(f"DPO, beta {beta}, gradient", gradient(ours, policy), gradient(theirs, policy), 1e-6)


def test_simpo() -> None:
    """From logits: TRL's mean log-probabilities and its loss, against ours."""
    logits = numbers(0, 6, 7, 9).requires_grad_()
    ids = torch.arange(42).reshape(6, 7) % 9
    averaged = CPOTrainer.get_batch_logps(logits, ids.masked_fill(~MASK, -100), average_log_prob=True)
    trainer = SimpleNamespace(
        alpha=0.0, beta=2.0, simpo_gamma=1.5, label_smoothing=0.0, loss_type="simpo", accelerator=Accelerator()
    )
    theirs = CPOTrainer.cpo_loss(trainer, *averaged.chunk(2))[0].mean()
    own = logits[:, :-1].log_softmax(-1).gather(-1, ids[:, 1:, None]).squeeze(-1)
    own = torch.nn.functional.pad(own, (1, 0))  # index t speaks about token t
    chosen, rejected = summed(own, mean=True)
    ours = simpo(chosen=chosen, rejected=rejected, inverse_temperature=2.0, margin=1.5).mean()
    agree("SimPO", ours, theirs, 1e-6)
    agree("SimPO, gradient", gradient(ours, logits), gradient(theirs, logits), 1e-6)


def test_redi_has_no_counterpart() -> None:
    """Its symmetric end is what length-normalised DPO tends to for small beta: (loss - log 2) / (beta / 2)."""
    policy = (-numbers(0, 6, 7).double().abs()).requires_grad_()
    rejected = torch.arange(6) >= PAIRS
    per_token = redi(policy_logprobs=policy, rejected=rejected, rejected_weight=1.0)
    ours = reduce(per_token, MASK, kind="sequence", denominator=float(PAIRS))
    beta = 1e-6
    theirs = trl_dpo(policy, torch.zeros_like(policy), beta, "sigmoid_norm")
    lengths = MASK.sum(1)
    counted = gradient(theirs, policy).reshape(6, 7) * 2 / beta
    mine = gradient(ours, policy).reshape(6, 7)
    agree("REDI, alpha 1, against sigmoid_norm at beta 1e-6, gradient", mine, counted, 1e-6)
    part = reduce(
        redi(policy_logprobs=policy, rejected=rejected, rejected_weight=0.8), MASK, kind="sequence", denominator=3.0
    )
    weakened = gradient(part, policy).reshape(6, 7)
    assert lengths.min() > 0
    differ(weakened, counted)
    why = "REDI weakens the rejected half by alpha, which no preference loss of TRL does"
    agree("REDI, alpha 0.8, against sigmoid_norm, gradient", weakened, counted, 1.0, why)
