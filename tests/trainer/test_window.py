"""Sequences fit the model's window, or the run ends before an engine starts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from transformers import LlamaConfig

from rlkd.errors import RecipeError
from rlkd.models import check_windows, context_length
from rlkd.recipe import Recipe, load_recipe, validate_recipe
from rlkd.recipe.models import ScratchModel, TeacherSpec
from rlkd.recipe.privileged_checks import teacher_prompt_budget
from rlkd.trainer.eval_command import _fitted

ROOT = Path(__file__).parents[2]


def folder(path: Path, window: int, **rotary: Any) -> Path:
    """A config, as a model folder has it."""
    parameters = {"rope_type": "default", "rope_theta": 1e4, **rotary}
    LlamaConfig(max_position_embeddings=window, rope_parameters=parameters).save_pretrained(path)
    return path


def recipe(*stages: dict[str, Any], rl: bool = True, evaluated: bool = False, **sections: Any) -> Recipe:
    problems = {"kind": "reasoning_gym", "task": "chain_sum", "size": 4, "seed": 1}
    raw = {
        "name": "window",
        "policy": {"kind": "pretrained", "path": "x"},
        "data": {"train": problems, "eval": {**problems, "seed": 2} if evaluated else None},
        "rollout": {"max_prompt_tokens": 40, "max_new_tokens": 23, "group_size": 2, "prompts_per_step": 2},
        "stages": [*stages, *([{"kind": "rl", "steps": 1}] if rl else [])],
        **sections,
    }
    return validate_recipe(raw, where="window")


@pytest.mark.parametrize(
    ("rotary", "window"),
    [
        ({}, 64),
        ({"rope_type": "linear", "factor": 4.0}, 256),
        ({"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}, 256),
        ({"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16}, 64),
    ],
)
def test_context_length(tmp_path: Path, rotary: dict[str, Any], window: int) -> None:
    assert context_length(folder(tmp_path, 64, **rotary)) == window


def test_sequences_fit_or_are_refused(tmp_path: Path) -> None:
    check_windows(recipe(), {"policy": folder(tmp_path / "fits", 64)})
    with pytest.raises(RecipeError, match=r"policy: its window is 63 tokens, but .* 41 .* = 64; lower"):
        check_windows(recipe(), {"policy": folder(tmp_path / "short", 63)})
    with pytest.raises(RecipeError, match=r"teacher: its window is 32 tokens"):
        check_windows(recipe(), {"policy": tmp_path / "fits", "teacher": folder(tmp_path / "teacher", 32)})


@pytest.mark.parametrize(
    "name", ["opsd", "pi_distill", "rltf_sd", "rltf_fm", "alm", "kdrl", "grpo", "redi", "alphamed"]
)
def test_the_embedded_recipes_fit_their_own_models(name: str, tmp_path: Path) -> None:
    given = load_recipe(ROOT / "recipes" / f"{name}.yaml")
    models = {"policy": given.policy}
    if isinstance(given.teacher, TeacherSpec):
        models["teacher"] = given.teacher.model
    for each, spec in models.items():
        assert isinstance(spec, ScratchModel)
        folder(tmp_path / each, spec.context_length)
    check_windows(given, {each: tmp_path / each for each in models})


def test_what_only_the_learner_reads_needs_no_room_for_the_engine(tmp_path: Path) -> None:
    given = load_recipe(ROOT / "recipes" / "opsd.yaml")
    total = teacher_prompt_budget(given) + given.rollout.max_new_tokens
    check_windows(given, {"policy": folder(tmp_path / "fits", total)})
    with pytest.raises(RecipeError, match=f"its window is {total - 1} tokens"):
        check_windows(given, {"policy": folder(tmp_path / "short", total - 1)})


@pytest.mark.parametrize(("engine", "room"), [("vllm", 1), ("transformers", 0)])
def test_only_an_engine_needs_a_token_more(engine: str, room: int, tmp_path: Path) -> None:
    """40 + 23 tokens: a plain forward pass reads them in a window of 63, an engine generates one more."""
    teacher = {"model": {"kind": "pretrained", "path": "x"}, "engine": engine}
    given = recipe(objective={"kind": "distill"}, teacher=teacher)
    folders = {"policy": folder(tmp_path / "policy", 64), "teacher": folder(tmp_path / "teacher", 63 + room)}
    check_windows(given, folders)
    with pytest.raises(RecipeError, match=f"teacher: its window is {62 + room} tokens"):
        check_windows(given, {**folders, "teacher": folder(tmp_path / "short", 62 + room)})


def test_a_teacher_that_is_evaluated_is_served_by_an_engine(tmp_path: Path) -> None:
    teacher = {"model": {"kind": "pretrained", "path": "x"}, "engine": "transformers"}
    sft = {"kind": "sft", "target": "teacher", "steps": 30, "max_length": 60}
    given = recipe(sft, objective={"kind": "distill"}, teacher=teacher, evaluated=True)
    folders = {"policy": folder(tmp_path / "policy", 64), "teacher": folder(tmp_path / "teacher", 63)}
    with pytest.raises(RecipeError, match="teacher: its window is 63 tokens"):
        check_windows(given, folders)


def test_what_samples_pairs_is_served_by_an_engine(tmp_path: Path) -> None:
    """No RL stage and no evaluation: the engine still holds a prompt and a trace."""
    offline = {"kind": "offline", "pairs": {"kind": "sampled", "model": "policy"}, "steps": 1}
    given = recipe({**offline, "max_prompt_tokens": 40, "max_response_tokens": 23}, rl=False)
    check_windows(given, {"policy": folder(tmp_path / "fits", 64)})
    with pytest.raises(RecipeError, match="policy: its window is 63 tokens"):
        check_windows(given, {"policy": folder(tmp_path / "short", 63)})


def test_solutions_fit_or_are_refused(tmp_path: Path) -> None:
    sft = recipe({"kind": "sft", "steps": 1, "max_length": 65, "optim": {"lr": 1e-3, "warmup_steps": 0}}, rl=False)
    with pytest.raises(RecipeError, match=r"stages\.sft\.max_length: 65 exceeds the 64 tokens of policy's window"):
        check_windows(sft, {"policy": folder(tmp_path, 64)})


def test_pairs_fit_or_are_refused(tmp_path: Path) -> None:
    spec = {"kind": "offline", "pairs": {"kind": "file", "path": "x"}, "max_prompt_tokens": 40, "epochs": 1.0}
    check_windows(recipe({**spec, "max_response_tokens": 24}, rl=False), {"policy": folder(tmp_path, 64)})
    with pytest.raises(
        RecipeError, match=r"40 \+ max_response_tokens: 25 = 65 exceeds the 64 tokens of policy's window"
    ):
        check_windows(recipe({**spec, "max_response_tokens": 25}, rl=False), {"policy": tmp_path})


def test_evaluation_takes_the_prompt_budget_that_is_left(tmp_path: Path) -> None:
    assert _fitted(recipe(), folder(tmp_path / "a", 63)).rollout.max_prompt_tokens == 39
    assert _fitted(recipe(), folder(tmp_path / "b", 640)).rollout.max_prompt_tokens == 40
    with pytest.raises(
        RecipeError, match=r"--max-new-tokens: 23 leaves 0 of the model's 24 tokens .* write 12 or less"
    ):
        _fitted(recipe(), folder(tmp_path / "c", 24))
