"""Post-training for reasoning LLMs: SFT, reinforcement learning and on-policy distillation from one recipe file."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rlkd.cli import main
    from rlkd.recipe import Recipe, load_recipe
    from rlkd.trainer.run import train

__all__ = ["Recipe", "load_recipe", "main", "train"]

_HOMES = {"main": "rlkd.cli", "load_recipe": "rlkd.recipe", "Recipe": "rlkd.recipe", "train": "rlkd.trainer.run"}


def __getattr__(name: str) -> Any:
    """Public names on first use: ``import rlkd`` and ``rlkd --help`` stay fast."""
    if name not in _HOMES:
        raise AttributeError(f"module 'rlkd' has no attribute '{name}'")
    import importlib

    return getattr(importlib.import_module(_HOMES[name]), name)
