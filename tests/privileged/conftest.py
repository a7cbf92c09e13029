"""A tiny tokenizer trained on real solutions, and recipes small enough for a unit test."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rlkd.models.tokenizer import build_tokenizer
from rlkd.recipe import Recipe
from rlkd.recipe.loading import validate_recipe
from rlkd.recipe.models import BpeTokenizer
from rlkd.records import Example

REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="session")
def gsm8k() -> list[Example]:
    """The first 200 GSM8K training problems with their worked solutions."""
    path = Path(os.environ.get("RLKD_SHARED", REPOSITORY / ".." / "shared")) / "data" / "gsm8k_train.jsonl"
    if not path.is_file():
        pytest.skip(f"no shared data at {path}; set RLKD_SHARED")
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()[:200]]
    return [
        Example(f"gsm8k-{i}", row["question"], row["answer"].rpartition("####")[2].strip(), solution=row["answer"])
        for i, row in enumerate(rows)
    ]


@pytest.fixture(scope="session")
def tokenizer(gsm8k: list[Example]) -> Any:
    """Byte-level BPE of 512 tokens."""
    texts = [text for example in gsm8k for text in (example.question, example.solution or "")]
    return build_tokenizer(BpeTokenizer(vocab_size=512), texts, 4096)


@pytest.fixture(scope="session")
def make_recipe() -> Callable[..., Recipe]:
    """A valid OPSD recipe with some of its keys replaced (dotted)."""

    def make(**changes: Any) -> Recipe:
        raw: dict[str, Any] = {
            "name": "tiny",
            "policy": {
                "kind": "scratch",
                "hidden_size": 32,
                "layers": 2,
                "heads": 2,
                "context_length": 2048,
                "tokenizer": {"kind": "bpe", "vocab_size": 512},
            },
            "teacher": {"kind": "self"},
            "privileged": {"field": "solution"},
            "data": {"train": {"kind": "reasoning_gym", "task": "chain_sum", "size": 8, "seed": 1}},
            "objective": {"kind": "opsd"},
            "rollout": {"prompts_per_step": 2, "group_size": 2},
            "stages": [{"kind": "rl", "steps": 1}],
        }
        for dotted, value in changes.items():
            *parents, last = dotted.split("__")
            node = raw
            for part in parents:
                node = node.setdefault(part, {})
            if value is None:
                node.pop(last, None)
            else:
                node[last] = value
        return validate_recipe(raw, where="tiny")

    return make
