"""A causal LM on packed tokens that returns log-probabilities of the completion tokens, never logits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from rlkd.learner import attention
from rlkd.learner.packing import MicroBatch
from rlkd.tensors import LogprobOutput, chunked_logprobs


class PackedPolicy(nn.Module):
    """Wraps a transformers model; everything that trains, scores or serves as a reference goes through here."""

    def __init__(self, model: Any, *, temperature: float = 1.0) -> None:
        super().__init__()
        self.model = model
        self.temperature = temperature

    def forward(self, batch: MicroBatch, *, with_entropy: bool = False) -> LogprobOutput:
        """[N] log-probabilities (nats, at the sampling temperature) of the batch's completion tokens."""
        head = self.model.get_output_embeddings()
        return chunked_logprobs(
            hidden=self.hidden(batch),
            head_weight=head.weight,
            head_bias=getattr(head, "bias", None),
            targets=batch.targets,
            temperature=self.temperature,
            with_entropy=with_entropy,
        )

    def hidden(self, batch: MicroBatch) -> Tensor:
        """[N, D] final hidden states that predict the completion tokens."""
        decoder = _decoder(self.model)
        output = decoder(
            input_ids=batch.input_ids[None],
            position_ids=batch.position_ids[None],
            use_cache=False,
            layout=batch.layout,
        )
        return output.last_hidden_state[0].index_select(0, batch.select)


def _decoder(model: Any) -> Any:
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    return base.get_decoder()


def load_causal_lm(folder: str | Path, *, dtype: torch.dtype) -> Any:
    """The model of a folder with packed attention and no dropout in eval mode."""
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(str(folder), dtype=dtype, attn_implementation=attention.register())
