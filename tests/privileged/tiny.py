"""A small float64 model, rows with two contexts, and a learner's pass over them without any engine."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from rlkd.learner import attention
from rlkd.learner.comparison import Comparison
from rlkd.learner.packing import MicroBatch, pack, plan_micro_batches
from rlkd.learner.policy import PackedPolicy
from rlkd.learner.privileged_loss import ContextSignals
from rlkd.learner.teaching import SelfTeaching
from rlkd.recipe.privileged import SelfTeacher
from rlkd.records import Chunks, TrainRow

VOCAB = 61
TERMS = ("sampled", "bare", "revision", "critique")


def model(seed: int = 0) -> PackedPolicy:
    """Two layers, tied embeddings, float64 (the norms round to float32 inside)."""
    attention.register()
    config = LlamaConfig(
        vocab_size=VOCAB,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=256,
        tie_word_embeddings=True,
        initializer_range=0.5,
        attn_implementation=attention.NAME,
    )
    torch.manual_seed(seed)
    return PackedPolicy(LlamaForCausalLM(config).double())


def tokens(draw: random.Random, low: int, high: int) -> tuple[int, ...]:
    return tuple(draw.randrange(VOCAB) for _ in range(draw.randrange(low, high)))


def two_context_rows(groups: int = 3, size: int = 2, *, seed: int = 0, longest_teacher: int = 40) -> list[TrainRow]:
    """Each group has a prompt and another, longer one for the teacher."""
    draw = random.Random(seed)
    rows: list[TrainRow] = []
    for group in range(groups):
        prompt, other = tokens(draw, 1, 8), tokens(draw, 10, longest_teacher)
        for _ in range(size):
            done = tokens(draw, 1, 9)
            logprobs = tuple(-draw.random() * 4 for _ in done)
            rows.append(TrainRow(group, prompt, done, logprobs, draw.gauss(0, 1), len(rows), teacher_prompt_ids=other))
    return rows


def teacher_of(policy: PackedPolicy, weights: str = "live", *, budget: int = 10_000) -> SelfTeaching:
    spec = SelfTeacher(weights=weights)  # type: ignore[arg-type]
    return SelfTeaching(lambda: policy, spec, None, budget)


def signals_of(batch: MicroBatch, policy: PackedPolicy, against: Sequence[Comparison] = ()) -> ContextSignals:
    """What the learner hands to a loss, for rows whose log-probs were measured as the row says."""
    output = policy(batch, against=against)
    logprobs = batch.scatter(output.logprobs)

    def grid(values: Sequence[Sequence[float]]) -> Tensor:
        return batch.scatter(torch.tensor([v for line in values for v in line], dtype=torch.float64))

    real = batch.scatter(torch.ones_like(batch.targets)).bool()
    masks = {term: real & torch.tensor([[row.term == term] for row in batch.rows]) for term in TERMS}
    compared = {}
    if output.divergence is not None and output.clipped_share is not None:
        compared = {
            "divergence": batch.scatter(output.divergence),
            "clipped_share": batch.scatter(output.clipped_share),
        }
    return ContextSignals(
        policy_logprobs=logprobs,
        proximal_logprobs=logprobs.detach(),
        rollout_logprobs=grid([row.rollout_logprobs for row in batch.rows]),
        advantages=torch.tensor([[row.advantage] for row in batch.rows]).double().expand_as(logprobs),
        response_mask=masks["sampled"],
        distill_rows=torch.tensor([row.distilled for row in batch.rows]),
        term_masks=masks,
        chunks=tuple(row.teacher_view if isinstance(row.teacher_view, Chunks) else None for row in batch.rows),
        **compared,
    )


def batch_of(rows: Sequence[TrainRow]) -> MicroBatch:
    (groups,) = plan_micro_batches(rows, token_budget=100_000)
    return pack(groups)


def gradient(policy: PackedPolicy, loss: Callable[[], Tensor]) -> Tensor:
    """All gradients as one vector."""
    policy.zero_grad()
    loss().backward()
    return torch.cat([p.grad.flatten() for p in policy.parameters() if p.grad is not None])


def plain_logits(policy: PackedPolicy, prompt: Sequence[int], completion: Sequence[int]) -> Tensor:
    """[C, V] logits of one unpacked sequence: the reference for everything that is packed."""
    alone = TrainRow(0, tuple(prompt), tuple(completion), (0.0,) * len(completion), 0.0)
    hidden = policy.hidden(pack([[alone]]))
    logits: Tensor = hidden @ policy.model.get_output_embeddings().weight.t()
    return logits


def with_other_prompt(rows: Sequence[TrainRow], other: Callable[[TrainRow], tuple[int, ...]]) -> list[TrainRow]:
    return [replace(row, teacher_prompt_ids=other(row)) for row in rows]
