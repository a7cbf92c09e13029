"""Weights on their way from the learner to an engine: names, bytes, checksum."""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import torch
from torch import Tensor

from rlkd.cluster import Worker

_PEFT_PREFIX = "base_model.model."
_CHUNK = 2**15  # words hashed at once: the products stay in the cache
_CHUNK_FACTOR = 0x9E3779B97F4A7C15 - 2**64  # odd, so that no chunk's sum is ever multiplied away


@dataclass
class Checksum:
    """Over names and raw bytes in their order, on whatever device they are: proves that what arrived is what was sent.

    Per tensor: the sum over its 64-bit words of word x (2 position + 1), modulo 2^64. One changed word always changes
    it, and so do two exchanged ones within a chunk unless their low 49 bits agree. Hashes stay on their device until
    ``value``.
    """

    names: list[str] = field(default_factory=list)
    hashes: list[Tensor] = field(default_factory=list)

    def add(self, name: str, tensor: Tensor) -> None:
        self.names.append(f"{name} {tensor.dtype} {tuple(tensor.shape)}")
        self.hashes.append(_hash(tensor.detach()))

    def value(self) -> int:
        """32 bits."""
        found = torch.stack(self.hashes).tolist() if self.hashes else []
        text = "\n".join(f"{name} {number}" for name, number in zip(self.names, found, strict=True))
        return zlib.crc32(text.encode())


@dataclass(frozen=True)
class Route:
    """Who meets where when weights don't go through the object store."""

    transport: str  # gloo, nccl or ipc
    engines: Sequence[Worker]
    devices: int  # of one engine
    address: tuple[str, int]
    deadline_s: float


@dataclass(frozen=True)
class Sent:
    """What went to the engines by another way than the object store."""

    checksum: int


def checksum(named: Iterable[tuple[str, Tensor]]) -> int:
    """The checksum of all."""
    found = Checksum()
    for name, tensor in named:
        found.add(name, tensor)
    return found.value()


def _hash(tensor: Tensor) -> Tensor:
    words = _words(tensor.contiguous().view(-1).view(torch.uint8))
    total = torch.zeros((), dtype=torch.int64, device=words.device)
    for part in words.split(_CHUNK):
        total = total * _CHUNK_FACTOR + (part * _odd_numbers(words.device)[: part.numel()]).sum()
    return total


def _words(raw: Tensor) -> Tensor:
    """Bytes as 64-bit words, the last one filled up with zeros."""
    if raw.numel() % 8:
        return torch.nn.functional.pad(raw, (0, -raw.numel() % 8)).view(torch.int64)
    aligned = raw.clone() if raw.storage_offset() % 8 else raw  # what is cut from a packed buffer need not be
    return aligned.view(torch.int64)


@cache
def _odd_numbers(device: torch.device) -> Tensor:
    numbers = torch.arange(1, 2 * _CHUNK, 2, dtype=torch.int64, device=device)
    if device.type == "cuda":
        torch.cuda.synchronize(device)  # the next to read them may be on another stream
    return numbers


def published(model: Any, state: Mapping[str, Tensor], *, tied: bool) -> Iterator[tuple[str, Tensor]]:
    """Weights by transformers' names; adapters are merged, a tied head is left to its embedding.

    Args:
        state: whole weights of the model, or of some of its layers.
    """
    if hasattr(model, "peft_config"):
        state = merged(model, state)
    for name, tensor in state.items():
        if not (tied and name == "lm_head.weight"):
            yield name, tensor.detach()


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
