"""A causal LM on packed tokens that returns log-probabilities of the completion tokens, never logits."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from rlkd.errors import RecipeError
from rlkd.learner import attention
from rlkd.learner.comparison import Comparison, Head, compare
from rlkd.learner.packing import MicroBatch
from rlkd.recipe.schema import LoraSpec
from rlkd.tensors import chunked_logprobs

# What models do to their logits (Granite, Cohere, Gemma 2, RecurrentGemma, Falcon-H1, ...) or to attention's
_LOGIT_SETTINGS = (
    "logits_scaling",
    "logit_scale",
    "final_logit_softcapping",
    "logits_soft_cap",
    "lm_head_multiplier",
    "output_multiplier",
    "attn_logit_softcapping",
)
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


class PolicyOutput(NamedTuple):
    """[N] per completion token, nats. ``divergence`` and ``clipped_share`` only where something is compared."""

    logprobs: Tensor
    entropy: Tensor | None = None
    divergence: Tensor | None = None
    clipped_share: Tensor | None = None


class PackedPolicy(nn.Module):
    """Wraps a transformers model; everything that trains, scores or serves as a reference goes through here."""

    def __init__(self, model: Any, *, temperature: float = 1.0) -> None:
        super().__init__()
        self.model = model
        self.temperature = temperature

    def forward(
        self,
        batch: MicroBatch,
        *,
        with_entropy: bool = False,
        against: Sequence[Comparison] = (),
        hidden_only: bool = False,
    ) -> PolicyOutput | Tensor:
        """Log-probabilities (at the sampling temperature) of the batch's completion tokens.

        Args:
            against: distributions that the policy's are compared with; the divergence carries gradient.
            hidden_only: return ``hidden`` and nothing else. Under ZeRO-3 every pass has to come through here: what
                gathers the weights hangs on this call.
        """
        if hidden_only:
            return self.hidden(batch)
        head = self.model.get_output_embeddings()
        bias = getattr(head, "bias", None)
        hidden = self.hidden(batch)
        logprobs, entropy = chunked_logprobs(
            hidden=hidden,
            head_weight=head.weight,
            head_bias=bias,
            targets=batch.targets,
            temperature=self.temperature,
            with_entropy=with_entropy,
        )
        compared = compare(against, hidden=hidden, head=Head(head.weight, bias), temperature=self.temperature)
        return PolicyOutput(logprobs, entropy, *(compared or (None, None)))

    def hidden(self, batch: MicroBatch) -> Tensor:
        """[N, D] final hidden states that predict the completion tokens."""
        decoder = _decoder(self.model)
        output = decoder(
            input_ids=batch.input_ids[None],
            position_ids=batch.position_ids[None],
            use_cache=False,
            layout=batch.layout,
        )
        hidden: Tensor = output.last_hidden_state[0]
        return hidden.index_select(0, batch.select)


def _decoder(model: Any) -> Any:
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    return base.get_decoder()


def load_causal_lm(folder: str | Path, *, dtype: torch.dtype) -> Any:
    """The model of a folder with packed attention and no dropout in eval mode. Raises: see ``check_logits``."""
    from transformers import AutoModelForCausalLM

    check_logits(folder)
    return AutoModelForCausalLM.from_pretrained(str(folder), dtype=dtype, attn_implementation=attention.register())


def placed(model: Any, device: torch.device, *, room: float | None = None) -> Any:
    """The model for passes without gradient on a device: whole, or its head and one layer at a time.

    Args:
        room: bytes that it may take there; default: a GPU's free memory less a fifth for activations.
    """
    if room is None:
        room = 0.8 * torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else float("inf")
    if sum(parameter.nbytes for parameter in model.parameters()) <= room:
        return model.to(device)
    from accelerate import cpu_offload

    head = model.get_output_embeddings()
    cpu_offload(model.get_decoder(), execution_device=device)  # an embedding that the head shares stays with the head
    head.to(device)
    return model


def check_logits(folder: str | Path) -> None:
    """Whether a model's logits are its hidden states times its head, which is all that a packed pass computes.

    Raises: RecipeError naming the setting of its config that changes them.
    """
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(str(folder)).get_text_config()
    for name in _LOGIT_SETTINGS:
        value = getattr(config, name, None)
        if value not in (None, 1.0):
            raise RecipeError(
                f"{folder}: its config has {name} {value}, which changes the model's logits and which the learner's "
                "pass does not apply; take a model without it (Llama, Qwen, Mistral, OLMo, SmolLM, Gemma 3, ...)"
            )


def with_adapters(model: Any, lora: LoraSpec | None) -> Any:
    """The model, wrapped by peft where the recipe has a ``learner.lora``."""
    if lora is None:
        return model
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=lora.target_modules,
        task_type="CAUSAL_LM",
    )
    return get_peft_model(model, config, autocast_adapter_dtype=False)
