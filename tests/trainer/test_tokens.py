"""What an RL stage asks of tokenizers, rows and servers is asked before the first stage, which may take hours."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rollout_groups import group
from transformers import GraniteConfig

from rlkd.data.prompt import PromptBuilder
from rlkd.errors import RecipeError, RolloutError, TeacherError
from rlkd.models import load_tokenizer, materialise
from rlkd.recipe import Recipe, load_recipe, validate_recipe
from rlkd.recipe.models import TeacherSpec
from rlkd.trainer.context import Run
from rlkd.trainer.contract import check_tokens
from rlkd.trainer.teachers import TeacherPanel

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
    same = model(teacher.model, "same", "twelve and three make fifteen")
    check_tokens(run, {"policy": policy, "teacher": same})
    config = json.loads((same / "config.json").read_text())
    (same / "config.json").write_text(json.dumps(config | {"final_logit_softcapping": 30.0}))
    with pytest.raises(RecipeError, match=r"same: its config has final_logit_softcapping 30\.0"):
        check_tokens(run, {"policy": policy, "teacher": same})
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


NOBODY = "http://127.0.0.1:9/v1"


@pytest.mark.parametrize("transport", ["sampled", "top_k"])
def test_a_teachers_server_is_asked(tmp_path: Path, engineless_run: Make, transport: str) -> None:
    raw = load_recipe(ROOT / "recipes" / "kdrl.yaml").model_dump(mode="json")
    policy = materialise(
        load_recipe(ROOT / "recipes" / "kdrl.yaml").policy, tmp_path / "policy", where="policy", seed=0,
        texts=lambda: ["1 + 2"] * 20,
    )  # fmt: skip
    server = {"kind": "server", "url": NOBODY, "model": "m", "tokenizer": str(policy), "tries": 1}
    raw["teacher"] = server | {"transport": transport}
    raw["stages"] = [stage for stage in raw["stages"] if stage["kind"] == "rl"]
    raw["objective"] = {"kind": "opd", "divergence": "sampled" if transport == "sampled" else "forward_kl"}
    recipe = validate_recipe(raw, where="test")
    run = replace(engineless_run(recipe, tmp_path), tokenizer=load_tokenizer(policy))
    run.train_prompts.append(group("a", [1]).prompt)
    with pytest.raises(TeacherError, match=f"{NOBODY} cannot be used after 1 tries"):
        check_tokens(run, {"policy": policy})


def test_a_judge_is_asked(tmp_path: Path, engineless_run: Make) -> None:
    source = f"feedback.source={{kind: judge, url: '{NOBODY}', model: m, tries: 1}}"
    recipe = load_recipe(ROOT / "recipes" / "rltf_sd.yaml", [source, "stages.sft.contexts=[bare]"])
    policy = materialise(recipe.policy, tmp_path / "policy", where="policy", seed=0, texts=lambda: ["1 + 2"] * 20)
    tokenizer = load_tokenizer(policy)
    builder = PromptBuilder(tokenizer, recipe.data)
    run = replace(engineless_run(recipe, tmp_path), tokenizer=tokenizer, builder=builder)
    run.train_prompts.append(builder.prompt(group("a", [1]).prompt.example))
    with pytest.raises(RolloutError, match=f"{NOBODY} failed in 1 of 1"):
        check_tokens(run, {"policy": policy})


def test_an_alm_teachers_tokenizer_is_looked_at(tmp_path: Path, engineless_run: Make) -> None:
    recipe = load_recipe(ROOT / "recipes" / "alm.yaml")
    assert isinstance(recipe.teacher, TeacherSpec)
    models = {
        name: materialise(spec, tmp_path / name, where=name, seed=0, texts=lambda: ["1 + 2"] * 20)
        for name, spec in (("policy", recipe.policy), ("teacher", recipe.teacher.model))
    }
    run = replace(engineless_run(recipe, tmp_path), tokenizer=load_tokenizer(models["policy"]))
    run.train_prompts.append(group("a", [1]).prompt)
    check_tokens(run, models)
    bare = load_tokenizer(models["teacher"])
    bare.chat_template = None
    (models["teacher"] / "chat_template.jinja").unlink(missing_ok=True)
    bare.save_pretrained(models["teacher"])
    with pytest.raises(RecipeError, match=r"teacher\.model: its tokenizer has no chat template"):
        check_tokens(run, models)


def test_an_alm_teachers_engine_reserves_what_can_be_asked(tmp_path: Path, engineless_run: Make) -> None:
    """Not its whole window, which may be forty times as much; a shorter one as it is."""
    recipe = load_recipe(ROOT / "recipes" / "alm.yaml")
    assert isinstance(recipe.teacher, TeacherSpec)
    for window, wanted in ((192, 192), (65536, 4 * (40 + 48 + 1))):
        spec = recipe.teacher.model.model_copy(update={"context_length": window})
        folder = materialise(spec, tmp_path / str(window), where="teacher", seed=0, texts=lambda: ["1 + 2"])
        panel = TeacherPanel.of(engineless_run(recipe, tmp_path), {"teacher": folder})
        assert panel.fleets["teacher"].settings.max_model_len == wanted


def test_a_policy_whose_logits_are_scaled_is_refused(tmp_path: Path, engineless_run: Make, recipe: Recipe) -> None:
    GraniteConfig(logits_scaling=8.0).save_pretrained(tmp_path / "policy")
    with pytest.raises(RecipeError, match=r"logits_scaling 8\.0, which changes the model's logits"):
        check_tokens(engineless_run(recipe, tmp_path), {"policy": tmp_path / "policy"})
