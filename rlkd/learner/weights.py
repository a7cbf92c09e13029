"""Weights on their way from the learner to an engine: names, bytes, checksum."""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

_PEFT_PREFIX = "base_model.model."


def checksum(named: Sequence[tuple[str, Tensor]]) -> int:
    """CRC-32 over names and raw bytes: proves that what arrived is what was sent."""
    value = 0
    for name, tensor in named:
        value = zlib.crc32(name.encode(), value)
        raw = tensor.contiguous().view(-1).view(torch.uint8).numpy()
        value = zlib.crc32(raw, value)  # type: ignore[arg-type]  # an array is a buffer
    return value


def published(model: Any, state: Mapping[str, Tensor], *, tied: bool) -> Iterator[tuple[str, Tensor]]:
    """CPU copies by transformers' names; adapters are merged, a tied head is left to its embedding."""
    if hasattr(model, "peft_config"):
        state = merged(model, state)
    for name, tensor in state.items():
        if not (tied and name == "lm_head.weight"):
            yield name, tensor.detach().to("cpu", copy=True)


def merged(model: Any, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Base weights with each adapter's product added; the trained model itself is not touched."""
    config = model.peft_config["default"]
    result: dict[str, Tensor] = {}
    for name, tensor in state.items():
        plain = name.removeprefix(_PEFT_PREFIX)
        if ".lora_" in plain:
            continue
        if plain.endswith(".base_layer.weight"):
            stem = name.removesuffix(".base_layer.weight")
            low, high = state[f"{stem}.lora_A.default.weight"], state[f"{stem}.lora_B.default.weight"]
            tensor = (tensor.float() + (high.float() @ low.float()) * (config.lora_alpha / config.r)).to(tensor.dtype)
        result[plain.replace(".base_layer.", ".")] = tensor
    return result
