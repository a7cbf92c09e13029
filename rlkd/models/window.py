"""How many positions a model has, and whether a recipe's sequences fit into them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from rlkd.errors import RecipeError
from rlkd.recipe import Recipe
from rlkd.recipe.checks import has_rl
from rlkd.recipe.offline_checks import offline_stages
from rlkd.recipe.privileged_checks import longest_prompt, teacher_prompt_budget
from rlkd.recipe.schema import OfflineStage, SftStage


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
    served = has_rl(recipe) or recipe.data.eval or any(s.pairs.kind == "sampled" for _, s in offline_stages(recipe))
    completion = max(rollout.max_new_tokens, recipe.eval.max_new_tokens or 0)
    for name, folder in folders.items():
        if recipe.objective.kind == "alm" and name != "policy":
            continue  # another tokenizer counts other tokens; its budget is made to fit
        window = context_length(folder)
        prompt = longest_prompt(recipe) if name == "policy" else teacher_prompt_budget(recipe)
        total = prompt + completion + 1  # the engine scores a sequence by generating one token more
        if served and total > window:
            raise RecipeError(
                f"{name}: its window is {window} tokens, but prompts of up to {prompt} and completions of up to "
                f"{completion} (and one) make {total}; lower rollout.max_prompt_tokens or rollout.max_new_tokens "
                "(eval.max_new_tokens, privileged.max_tokens), or take a model with a longer window"
            )
        for stage in recipe.stages:
            if isinstance(stage, SftStage) and stage.target == name and stage.max_length > window:
                raise RecipeError(
                    f"stages.{stage.name}.max_length: {stage.max_length} exceeds the {window} tokens of {name}'s window"
                )
            if isinstance(stage, OfflineStage) and name == "policy":
                _check_pairs(stage, window)


def _check_pairs(stage: OfflineStage, window: int) -> None:
    total = stage.max_prompt_tokens + stage.max_response_tokens
    if total > window:
        raise RecipeError(
            f"stages.{stage.name}: max_prompt_tokens {stage.max_prompt_tokens} + max_response_tokens "
            f"{stage.max_response_tokens} = {total} exceeds the {window} tokens of the policy's window; lower them, or "
            "widen a pretrained model by policy.config, e.g. {max_position_embeddings: 32768, rope_theta: 300000.0}"
        )
