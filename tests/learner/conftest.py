from __future__ import annotations

import random

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from rlkd.learner import attention
from rlkd.records import TrainRow

VOCAB = 97


@pytest.fixture(params=["mha", "gqa"])
def model(request: pytest.FixtureRequest) -> LlamaForCausalLM:
    """A small float64 Llama, with and without grouped queries. (Its norms round to float32 inside: 1e-6, not 1e-12.)"""
    attention.register()
    config = LlamaConfig(
        vocab_size=VOCAB,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2 if request.param == "gqa" else 4,
        max_position_embeddings=256,
        tie_word_embeddings=True,
        attn_implementation=attention.NAME,
    )
    torch.manual_seed(0)
    return LlamaForCausalLM(config).double()


def random_rows(groups: int, size: int, *, seed: int = 0, longest: int = 30) -> list[TrainRow]:
    """Rows with prompts and completions of many lengths, one token included."""
    draw = random.Random(seed)
    rows = []
    for group in range(groups):
        prompt = tuple(draw.randrange(VOCAB) for _ in range(draw.randrange(1, longest)))
        for member in range(size):
            length = 1 if member == 0 else draw.randrange(1, longest)
            completion = tuple(draw.randrange(VOCAB) for _ in range(length))
            logprobs = tuple(-draw.random() * 5 for _ in completion)
            rows.append(
                TrainRow(
                    group,
                    prompt,
                    completion,
                    logprobs,
                    advantage=draw.gauss(0, 1),
                    index=len(rows),
                    teacher_logprobs=tuple(-draw.random() * 5 for _ in completion),
                )
            )
    return rows
