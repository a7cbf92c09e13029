"""What an RL stage asks of tokenizers and rows is asked before the first stage, which may take hours."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rollout_groups import group

from rlkd.data.prompt import PromptBuilder
from rlkd.errors import RecipeError, TeacherError
from rlkd.models import load_tokenizer, materialise
from rlkd.recipe import Recipe, load_recipe
from rlkd.recipe.models import TeacherSpec
from rlkd.trainer.context import Run
from rlkd.trainer.contract import check_tokens

ROOT = Path(__file__).parents[2]
Make = Callable[[Recipe, Path], Run]


def test_a_teacher_with_other_tokens_is_refused(tmp_path: Path, recipe: Recipe, engineless_run: Make) -> None:
    """Two tokenizers of one recipe section, trained on other texts."""
    teacher = recipe.teacher
    assert isinstance(teacher, TeacherSpec)

    def model(spec: Any, name: str, text: str) -> Path:
        return materialise(spec, tmp_path / name, where=name, seed=0, texts=lambda: [text] * 20)

    policy = model(recipe.policy, "policy", "twelve and three make fifteen")
    run = replace(engineless_run(recipe, tmp_path), tokenizer=load_tokenizer(policy))
    run.train_prompts.append(group("a", [1]).prompt)
    check_tokens(run, {"policy": policy, "teacher": model(teacher.model, "same", "twelve and three make fifteen")})
    with pytest.raises(TeacherError, match="another vocabulary than the policy's"):
        check_tokens(run, {"policy": policy, "teacher": model(teacher.model, "other", "nine less two leaves seven")})


def test_a_template_that_cannot_continue_a_turn_is_refused(tmp_path: Path, engineless_run: Make) -> None:
    recipe = load_recipe(ROOT / "recipes" / "rltf_sd.yaml")
    policy = materialise(recipe.policy, tmp_path / "policy", where="policy", seed=0, texts=lambda: ["1 + 2"] * 20)
    tokenizer = load_tokenizer(policy)
    builder = PromptBuilder(tokenizer, recipe.data)
    run = replace(engineless_run(recipe, tmp_path), tokenizer=tokenizer, builder=builder)
    run.train_prompts.append(builder.prompt(group("a", [1]).prompt.example))
    check_tokens(run, {"policy": policy})
    tokenizer.chat_template = tokenizer.chat_template.replace(
        "{{ '<|' + message['role']",
        "{% if not loop.last or loop.first %}({{ loop.length }}){% endif %}{{ '<|' + message['role']",
    )
    with pytest.raises(RecipeError, match="renders an earlier turn differently"):
        check_tokens(run, {"policy": policy})
