"""A cap that turns the divergence against the teacher is told, once."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from rlkd.recipe import Recipe, load_recipe
from rlkd.recipe.schema import RlStage
from rlkd.trainer.context import Run
from rlkd.trainer.rl import RlTrainer

OPSD = Path(__file__).parents[2] / "recipes" / "opsd.yaml"


@pytest.mark.parametrize(("clip", "notes"), [("0.05", 1), ("null", 0)])
def test_a_divergence_below_zero_is_told_once(
    clip: str,
    notes: int,
    tmp_path: Path,
    engineless_run: Callable[[Recipe, Path], Run],
    capsys: pytest.CaptureFixture[str],
) -> None:
    run = engineless_run(load_recipe(OPSD, [f"objective.clip={clip}"]), tmp_path)
    trainer = RlTrainer(run, RlStage(steps=3), tmp_path, {}, tmp_path)
    for step, divergence in enumerate((0.1, -0.002, -0.003)):
        trainer._watch_clip({"divergence": divergence, "clipped_share": 0.125}, step)
    said = capsys.readouterr().out
    assert said.count("objective.clip") == notes
    assert not notes or "step 2: objective.clip 0.05 caps entries with 12%" in said
