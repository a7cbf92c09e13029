from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from rlkd.data.prompt import PromptBuilder
from rlkd.models.tokenizer import build_tokenizer
from rlkd.recipe import Recipe, load_recipe
from rlkd.recipe.models import CharTokenizer

ROOT = Path(__file__).parents[2]


@pytest.fixture
def recipe() -> Recipe:
    return load_recipe(ROOT / "recipes" / "redi.yaml")


@pytest.fixture
def run(recipe: Recipe) -> SimpleNamespace:
    """What gathering pairs reads of a run: a real prompt builder and tokenizer; what is said is kept."""
    tokenizer: Any = build_tokenizer(CharTokenizer(), (), 256)
    said: list[str] = []
    return SimpleNamespace(
        recipe=recipe,
        tokenizer=tokenizer,
        builder=PromptBuilder(tokenizer, recipe.data),
        console=SimpleNamespace(status=said.append, note=said.append),
        eval_prompts=[],
        tokens={"generated": 0},
        abstained=0,
        said=said,
    )
