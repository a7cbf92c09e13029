"""Models that data steps need, by name: a model folder, a hub id, or ``package:NAME`` for one inside a package."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rlkd.data.curate.score import TextScorer


def model_folder(name: str, cache: str | Path) -> Path:
    """The folder that transformers loads; a packaged model is converted into ``cache`` once."""
    from rlkd.models.materialise import materialise
    from rlkd.recipe.models import PackagedModel, PretrainedModel

    target = Path(cache) / name.replace("/", "--").replace(":", "-")
    kind, _, package = name.partition(":")
    spec = PackagedModel(package=package) if kind == "package" and package else PretrainedModel(path=name)
    return materialise(spec, target, where=f"model '{name}'", seed=0, texts=lambda: ())


def named_tokenizer(name: str, cache: str | Path) -> Any:
    """The tokenizer of a named model."""
    from rlkd.models.materialise import load_tokenizer

    return load_tokenizer(model_folder(name, cache))


def named_scorer(name: str, cache: str | Path) -> TextScorer:
    """Token scores of a named model, at temperature 1; prompts are user messages where it has a chat template."""
    from rlkd.data.curate.score import load_scorer

    return load_scorer(model_folder(name, cache), chat=True)
