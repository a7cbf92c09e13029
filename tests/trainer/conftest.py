from __future__ import annotations

from pathlib import Path

import pytest

from rlkd.recipe import Recipe, load_recipe

ROOT = Path(__file__).parents[2]


@pytest.fixture
def recipe() -> Recipe:
    return load_recipe(ROOT / "recipes" / "kdrl.yaml")
