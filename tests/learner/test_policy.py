"""Which models the learner's pass over hidden states and head is right for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    CohereConfig,
    FalconH1Config,
    Gemma2Config,
    Gemma3TextConfig,
    GraniteConfig,
    LlamaConfig,
    PreTrainedConfig,
)

from rlkd.errors import RecipeError
from rlkd.learner.packing import score_sequences
from rlkd.learner.policy import PackedPolicy, load_causal_lm, placed

SIZES: dict[str, Any] = {
    "vocab_size": 64, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2,
    "num_key_value_heads": 2, "max_position_embeddings": 64, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip


@pytest.mark.parametrize(
    ("config", "said"),
    [
        (GraniteConfig(**SIZES, logits_scaling=8.0), "logits_scaling 8.0"),
        (CohereConfig(**SIZES), "logit_scale 0.0625"),
        (Gemma2Config(**SIZES, head_dim=16), "final_logit_softcapping 30.0"),
        (Gemma2Config(**SIZES, head_dim=16, final_logit_softcapping=None), "attn_logit_softcapping 50.0"),
        (FalconH1Config(**SIZES, lm_head_multiplier=0.5), "lm_head_multiplier 0.5"),
    ],
    ids=["granite", "cohere", "gemma2", "gemma2-attention", "falcon-h1"],
)
def test_a_model_that_changes_its_logits_is_refused(tmp_path: Path, config: PreTrainedConfig, said: str) -> None:
    config.save_pretrained(tmp_path)
    with pytest.raises(RecipeError, match=f"its config has {said}, which changes the model's logits"):
        load_causal_lm(tmp_path, dtype=torch.float32)


@pytest.mark.parametrize(
    "config",
    [
        GraniteConfig(**SIZES, logits_scaling=1.0),
        CohereConfig(**SIZES, logit_scale=1.0),
        Gemma3TextConfig(**SIZES, head_dim=16),
    ],
    ids=["granite", "cohere", "gemma3"],
)
def test_one_that_could_and_does_not_scores_as_transformers_does(tmp_path: Path, config: PreTrainedConfig) -> None:
    torch.manual_seed(0)
    plain = AutoModelForCausalLM.from_config(config).eval()
    plain.save_pretrained(tmp_path)
    prompt, completion = (1, 2, 3), (4, 5, 6, 7)
    policy = PackedPolicy(load_causal_lm(tmp_path, dtype=torch.float32).eval())
    (found,) = score_sequences(policy, [(prompt, completion)], token_budget=100)
    with torch.no_grad():
        logprobs = plain(torch.tensor([prompt + completion])).logits[0].log_softmax(-1)
    wanted = [float(logprobs[len(prompt) - 1 + at, token]) for at, token in enumerate(completion)]
    assert found == pytest.approx(wanted, abs=1e-5)


@pytest.mark.parametrize("tied", [True, False])
def test_a_model_without_room_comes_layer_by_layer_and_scores_the_same(tmp_path: Path, tied: bool) -> None:
    torch.manual_seed(0)
    config = LlamaConfig(**SIZES | {"num_hidden_layers": 3}, tie_word_embeddings=tied)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    sequences = [((1, 2, 3), (4, 5, 6, 7)), ((1, 9), (8, 3))]
    scores = []
    for room in (None, 0.0):
        model = placed(load_causal_lm(tmp_path, dtype=torch.float32), torch.device("cpu"), room=room)
        held = {parameter.device.type for layer in model.model.layers for parameter in layer.parameters()}
        assert held == {"cpu" if room is None else "meta"}
        scores.append(score_sequences(PackedPolicy(model.eval()), sequences, token_budget=100))
    assert scores[0] == scores[1]
