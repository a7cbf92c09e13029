from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from rlkd.cluster import Cluster
from rlkd.launch import Launch
from rlkd.models import materialise
from rlkd.recipe import Recipe, load_recipe
from rlkd.recipe.models import ScratchModel, TeacherSpec

ROOT = Path(__file__).parents[2]
QUESTION = "State the final answer to the following arithmetic problem: 12 + 34 - 5 ="


@pytest.fixture(scope="session")
def recipe() -> Recipe:
    """The embedded default at reduced size, resolved for this machine."""
    return Launch().resolve(load_recipe(ROOT / "recipes" / "kdrl.yaml"))


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """A real Ray cluster for one module's tests: the next module may start its own."""
    with Cluster(tmp_path_factory.mktemp("logs"), start_deadline_s=300.0) as started:
        yield started


@pytest.fixture(scope="session")
def folders(recipe: Recipe, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Two models of each of two architectures, from different seeds, with one tokenizer."""
    root = tmp_path_factory.mktemp("models")
    assert isinstance(recipe.teacher, TeacherSpec)
    assert isinstance(recipe.policy, ScratchModel)
    assert isinstance(recipe.teacher.model, ScratchModel)

    def texts() -> list[str]:
        return [QUESTION, "12+34=46, 46-5=41, \\boxed{41}"] * 50

    made: dict[str, tuple[ScratchModel, int]] = {
        "policy": (recipe.policy, 0),
        "other": (recipe.policy, 1),
        "teacher": (recipe.teacher.model, 2),
        "other-teacher": (recipe.teacher.model, 3),
    }
    return {
        name: materialise(spec, root / name, where=name, seed=seed, texts=texts) for name, (spec, seed) in made.items()
    }
