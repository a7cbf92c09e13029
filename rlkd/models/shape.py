"""Size of a model without loading it: what an estimate of memory depends on."""

from __future__ import annotations

import importlib.util
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlkd.models.tokenizer import SPECIAL
from rlkd.recipe.models import ModelSpec, PackagedModel, ScratchModel


@dataclass(frozen=True)
class Shape:
    """What memory depends on. ``parameters`` counts tied embeddings once."""

    parameters: int
    layers: int
    hidden: int
    intermediate: int
    vocabulary: int
    kv_width: int  # kv heads x head size


def model_shape(spec: ModelSpec) -> Shape | None:
    """None for a model that is not on this machine."""
    if isinstance(spec, ScratchModel):
        return _scratch_shape(spec)
    if isinstance(spec, PackagedModel):
        return _packaged_shape(spec)
    config = Path(spec.path).expanduser() / "config.json"
    return _configured_shape(json.loads(config.read_text(encoding="utf-8"))) if config.is_file() else None


def _scratch_shape(spec: ScratchModel) -> Shape:
    tokenizer = spec.tokenizer
    vocabulary = tokenizer.vocab_size if tokenizer.kind == "bpe" else len(tokenizer.alphabet) + len(SPECIAL)
    return _configured_shape(
        {
            "vocab_size": vocabulary,
            "hidden_size": spec.hidden_size,
            "intermediate_size": spec.intermediate_size or 4 * spec.hidden_size,
            "num_hidden_layers": spec.layers,
            "num_attention_heads": spec.heads,
            "num_key_value_heads": spec.kv_heads or spec.heads,
            "tie_word_embeddings": True,
        }
    )


def _configured_shape(config: dict[str, Any]) -> Shape:
    """Llama-like: q, k, v, o; gate, up, down; two norms a layer; embedding, head, last norm."""
    hidden, layers = int(config["hidden_size"]), int(config["num_hidden_layers"])
    heads = int(config["num_attention_heads"])
    size = int(config.get("head_dim") or hidden // heads)
    kv_width = size * int(config.get("num_key_value_heads") or heads)
    intermediate, vocabulary = int(config["intermediate_size"]), int(config["vocab_size"])
    layer = 2 * hidden * heads * size + 2 * hidden * kv_width + 3 * hidden * intermediate + 2 * hidden
    tables = 1 if config.get("tie_word_embeddings") else 2
    return Shape(
        tables * vocabulary * hidden + layers * layer + hidden, layers, hidden, intermediate, vocabulary, kv_width
    )


def _packaged_shape(spec: PackagedModel) -> Shape | None:
    """From the GGUF file's own header."""
    import gguf

    found = importlib.util.find_spec(spec.package)
    files = sorted(Path(next(iter(found.submodule_search_locations))).rglob(spec.file)) if found else []  # type: ignore[arg-type]
    if len(files) != 1:
        return None
    reader = gguf.GGUFReader(files[0])
    architecture = str(reader.fields["general.architecture"].contents())

    def number(name: str) -> int:
        return int(reader.fields[f"{architecture}.{name}"].contents())

    tensors = {tensor.name: tensor for tensor in reader.tensors}
    return _configured_shape(
        {
            "vocab_size": int(tensors["token_embd.weight"].shape[1]),
            "hidden_size": number("embedding_length"),
            "intermediate_size": number("feed_forward_length"),
            "num_hidden_layers": number("block_count"),
            "num_attention_heads": number("attention.head_count"),
            "num_key_value_heads": number("attention.head_count_kv"),
            "tie_word_embeddings": "output.weight" not in tensors,
        }
    )
