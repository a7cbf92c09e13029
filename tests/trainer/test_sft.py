"""What happens around TRL: a finished stage stays finished, a failing rank is named, a model comes with its weights."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from rlkd.checkpoint import write_json
from rlkd.errors import CheckpointError
from rlkd.learner import trl_sft
from rlkd.recipe import Recipe
from rlkd.recipe.schema import SftStage
from rlkd.records import Example, PrivilegedPrompt, Prompt
from rlkd.trainer.context import Run
from rlkd.trainer.second_turns import SecondTurn
from rlkd.trainer.sft import _rows, run_sft

STAGE = SftStage(steps=3)
RECORD = {"loss": 0.5, "tokens": 12.0, "wall_s": 1.0}


def half_made(tmp_path: Path, *files: str) -> tuple[Path, Path]:
    """The stage's work folder before the model gets its name, and that name."""
    half, output = tmp_path / "policy.tmp", tmp_path / "policy"
    for file in ("step-2/trainer_state.json", *(f"policy/{name}" for name in files)):
        (half / file).parent.mkdir(parents=True, exist_ok=True)
        (half / file).touch()
    return half, output


def test_a_trained_model_is_not_trained_again_when_the_evaluation_after_it_dies(
    tmp_path: Path, recipe: Recipe, engineless_run: Callable[[Recipe, Path], Run]
) -> None:
    """The run has no cluster here: to train would fail."""
    half, output = half_made(tmp_path, "model.safetensors")
    trl_sft._hand_over(half, output, SimpleNamespace(save_pretrained=lambda _: None), RECORD)
    assert not half.exists()
    found = run_sft(engineless_run(recipe, tmp_path), STAGE, source=tmp_path, output=output, root=tmp_path)
    assert found == RECORD


@pytest.mark.parametrize("missing", ["model", "record"])
def test_a_model_counts_once_all_of_it_is_there(tmp_path: Path, missing: str) -> None:
    if missing == "record":
        (tmp_path / "policy").mkdir()
    else:
        write_json(tmp_path / "trained.json", RECORD)
    assert trl_sft.finished(tmp_path / "policy") is None


def test_a_model_saved_without_weights_is_an_error_that_keeps_the_checkpoints(tmp_path: Path) -> None:
    """What transformers leaves behind where ZeRO-3's weights were not gathered."""
    half, output = half_made(tmp_path, "config.json", "global_step1/zero_pp_rank_0_optim_states.pt")
    tokenizer: Any = SimpleNamespace(save_pretrained=lambda _: None)
    with pytest.raises(CheckpointError, match="was saved without its weights"):
        trl_sft._hand_over(half, output, tokenizer, RECORD)
    assert trl_sft.latest_checkpoint(output) == half / "step-2"
    assert not output.exists()


def test_a_row_without_privileged_text_is_trained_once() -> None:
    bare = Prompt(Example("a", "q", "1"), "q", (1, 2))
    told = replace(bare, privileged=PrivilegedPrompt("s q", (3, 1, 2), "s"))
    both = SftStage(steps=3, contexts=["bare", "privileged"])
    said = (7,)
    assert _rows(bare, said, both) == [((1, 2), said)]
    assert _rows(told, said, both) == [((1, 2), said), ((3, 1, 2), said)]
    assert _rows(bare, said, SftStage(steps=3, contexts=["privileged"])) == [((1, 2), said)]
    turns = SftStage(steps=3, contexts=["second_turn", "critique"])
    turn = SecondTurn((1, 2, 9), ((4, 9), (5, 0)))
    assert _rows(told, said, turns, turn) == [((1, 2, 9), said), ((4, 9), (5, 0))]
    assert _rows(told, said, turns) == []
