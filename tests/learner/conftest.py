from __future__ import annotations

import pytest
import torch
from learner_rows import VOCAB
from transformers import LlamaConfig, LlamaForCausalLM

from rlkd.learner import attention


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
