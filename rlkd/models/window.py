"""How many positions a model has, and whether a recipe's sequences fit into them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from rlkd.errors import RecipeError
from rlkd.recipe import Recipe
from rlkd.recipe.checks import has_rl
from rlkd.recipe.models import TeacherSpec
from rlkd.recipe.offline_checks import sampled_pairs
from rlkd.recipe.privileged_checks import (
    longest_prompt,
    longest_sampled_prompt,
    separate_teachers,
    teacher_prompt_budget,
)
from rlkd.recipe.schema import OfflineStage, SftStage, Stage


def context_length(folder: Path) -> int:
    """Positions of the model in ``folder``: what its config allows, stretched as its rotary embedding says."""
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(folder).get_text_config()
    rotary = getattr(config, "rope_parameters", None) or {}
    kind = rotary.get("rope_type", "default")
    # longrope's and llama3's configs state the stretched length already; yarn's factor applies to the original one
    original = rotary.get("original_max_position_embeddings", config.max_position_embeddings)
    if kind == "yarn":
        return max(int(config.max_position_embeddings), int(original * rotary.get("factor", 1.0)))
    factor = rotary.get("factor", 1.0) if kind in ("linear", "dynamic") else 1.0
    return int(config.max_position_embeddings * factor)


def check_windows(recipe: Recipe, folders: Mapping[str, Path]) -> None:
    """Whether every model has room for the longest sequence that the recipe lets it see.

    Args:
        folders: model folders by name ("policy", "teacher" or a routed teacher's name).

    Raises: RecipeError naming the model, its window and the settings to lower.
    """
    rollout = recipe.rollout
    completion = max(rollout.max_new_tokens, recipe.eval.max_new_tokens or 0)
    for name, folder in folders.items():
        if recipe.objective.kind == "alm" and name != "policy":
            continue  # another tokenizer counts other tokens; its budget is made to fit
        window = context_length(folder)
        prompt = _room_before_completion(recipe, name)
        if (has_rl(recipe) or recipe.data.eval or sampled_pairs(recipe)) and prompt + completion > window:
            raise RecipeError(
                f"{name}: its window is {window} tokens, but prompt and completion take up to {prompt} (room for the "
                f"engine) + {completion} = {prompt + completion}; lower rollout.max_prompt_tokens or "
                "rollout.max_new_tokens (eval.max_new_tokens, privileged.max_tokens), or take a model with more"
            )
        for stage in recipe.stages:
            what, longest = _trained(stage, name)
            if longest > window:
                raise RecipeError(
                    f"stages.{stage.name}.{what} {longest} exceeds the {window} tokens of {name}'s window; lower it or "
                    f"widen the model, e.g. config: {{max_position_embeddings: {longest}}}"
                )


def _room_before_completion(recipe: Recipe, name: str) -> int:
    """Positions that the named model needs beside those of a completion.

    An engine (vLLM) scores a sequence by generating one token more; a plain forward pass needs no such room.
    """
    if name == "policy":
        return max(longest_sampled_prompt(recipe) + 1, longest_prompt(recipe))
    spec = separate_teachers(recipe).get(name)
    by_pass = isinstance(spec, TeacherSpec) and spec.engine == "transformers"
    scored = teacher_prompt_budget(recipe) + (not by_pass)
    evaluated = recipe.data.eval and any(isinstance(s, SftStage) and s.target == name for s in recipe.stages)
    sampled = evaluated or any(pairs.model == name for pairs in sampled_pairs(recipe))
    return max(scored, longest_sampled_prompt(recipe) + 1 if sampled else 0)


def _trained(stage: Stage, name: str) -> tuple[str, int]:
    """(setting, tokens) of the longest sequence that a stage trains the named model on, where it is given."""
    if isinstance(stage, SftStage) and stage.target == name:
        return "max_length:", stage.max_length
    if isinstance(stage, OfflineStage) and name == "policy":
        total = stage.max_prompt_tokens + stage.max_response_tokens
        return (
            f"max_prompt_tokens: {stage.max_prompt_tokens} + max_response_tokens: {stage.max_response_tokens} =",
            total,
        )
    return "", 0
