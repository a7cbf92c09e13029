"""What an offline stage may say: every contradiction is an error that names the place and the remedy."""

from __future__ import annotations

from pathlib import Path

import pytest

from rlkd.errors import RecipeError
from rlkd.recipe import Recipe, load_recipe
from rlkd.recipe.schema import OfflineStage

ROOT = Path(__file__).parents[2]
REDI = ROOT / "recipes" / "redi.yaml"


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["stages.redi.steps=3"], ["stage 'redi': write either steps or epochs"]),
        (["stages.redi.epochs=null"], ["stage 'redi': write either steps or epochs"]),
        (["stages.redi.pairs={kind: fil, path: x}"], ["stages.2.pairs.kind: given 'fil'", "did you mean 'file'"]),
        (["stages.redi.objective={kind: dpo, beta: 1.0}"], ["objective.beta: unknown key", "inverse_temperature"]),
        (["stages.redi.objective.rejected_weight=1.5"], ["rejected_weight", "less than or equal to 1", "given 1.5"]),
        (["stages.redi.collapse.action=abort"], ["collapse.action", "'warn', 'stop' or 'off'"]),
        (
            ["stages.redi.collapse.action=stop", "stages.redi.objective={kind: sft}"],
            ["stages.2.collapse.action: 'stop'", "reads no wrong ones", "{action: off}"],
        ),
        (["stages.redi.pairs.samples=1"], ["stages.2.pairs.samples", "greater than or equal to 2"]),
        (["stages.redi.pairs.pairs_per_problem=5"], ["5 pairs need 10 samples; given 8"]),
        (["teacher=null", "stages.sft-teacher.target=policy"], ["stages.2.pairs.model: 'teacher'", "model: policy"]),
        (["teacher.model.tokenizer={kind: char}"], ["traces are taken over as tokens"]),
        (["stages.redi.max_response_tokens=80"], ["= 120 exceeds policy.context_length 96", "rollout.max_new_tokens"]),
        (["stages.redi.max_prompt_tokens=41"], ["stages.2.max_prompt_tokens: 41 exceeds rollout.max_prompt_tokens 40"]),
        (
            ["stages.redi.epochs=null", "stages.redi.steps=4"],
            ["stages.2.optim.warmup_steps: 5 exceeds its 4 steps"],
        ),
    ],
)
def test_a_contradiction_names_place_and_remedy(overrides: list[str], said: list[str]) -> None:
    with pytest.raises(RecipeError) as caught:
        load_recipe(REDI, overrides)
    for part in said:
        assert part in str(caught.value)


def test_given_pairs_need_no_engine_sizes_and_no_teacher() -> None:
    changed = ["stages.redi.pairs={kind: file, path: pairs.jsonl}", "stages.redi.max_response_tokens=56"]
    stage = load_recipe(REDI, changed).stages[2]
    assert isinstance(stage, OfflineStage)
    assert stage.max_prompt_tokens + stage.max_response_tokens == 96


@pytest.mark.parametrize("kind", ["symmetric", "sft", "dpo", "simpo"])
def test_one_line_turns_redi_into_a_baseline(kind: str) -> None:
    stage = load_recipe(REDI, [f"stages.redi.objective={{kind: {kind}}}"]).stages[2]
    assert isinstance(stage, OfflineStage)
    assert stage.objective.kind == kind


def test_the_paper_recipe_holds_the_papers_numbers() -> None:
    recipe: Recipe = load_recipe(ROOT / "recipes" / "paper" / "redi-1.5b.yaml")
    sft, stage = recipe.stages
    assert isinstance(stage, OfflineStage)
    assert sft.kind == "sft"
    assert sft.steps == int(5 * 77_629 / 128)
    from rlkd.trainer.offline import count_updates

    assert count_updates(stage, 53_175) == 1661
    assert stage.optim.warmup_steps == round(0.1 * 1661)
