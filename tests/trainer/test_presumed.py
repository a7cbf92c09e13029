"""What a method presumes and a run doesn't give is told, once."""

from __future__ import annotations

from pathlib import Path

import pytest

from rlkd.recipe import load_recipe
from rlkd.trainer.presumed import WINDOW, Presumed

RECIPES = Path(__file__).parents[2] / "recipes"
ALIKE = {"zero_variance_groups": 0.95, "pass_rate": 0.99}


@pytest.mark.parametrize(
    ("recipe", "overrides", "figures", "said"),
    [
        (
            "opsd",
            ["objective.clip=0.05"],
            {"divergence": -0.002, "clipped_share": 0.125},
            "clip 0.05 caps entries with 12",
        ),
        ("opsd", ["objective.clip=0.05"], {"divergence": 0.002, "clipped_share": 0.125}, ""),
        ("opsd", ["objective.clip=null"], {"divergence": -0.002}, ""),
        ("rltf_sd", [], {"revision_advantage": -0.25}, "revised answers score 0.25 less"),
        ("rltf_sd", [], {"revision_advantage": 0.1}, ""),
        ("rltf_fm", [], {"revision_advantage": -0.25}, ""),
        ("pi_distill", [], ALIKE, "in 95% of the groups all rollouts score the same (99% are right).*try harder"),
        ("grpo", [], ALIKE | {"pass_rate": 0.01}, "try easier problems"),
        ("grpo", [], ALIKE | {"zero_variance_groups": 0.6}, ""),
        ("kdrl", [], ALIKE, ""),  # the teacher teaches such groups too
        ("opsd", [], ALIKE, ""),
    ],
)
def test_it_is_told_once_over_several_steps(
    recipe: str, overrides: list[str], figures: dict[str, float], said: str
) -> None:
    notes: list[str] = []
    presumed = Presumed(load_recipe(RECIPES / f"{recipe}.yaml", overrides), notes.append)
    for step in range(1, WINDOW):
        presumed.update(step, figures)
    assert notes == []  # a few steps may look like that by chance
    for step in range(WINDOW, 3 * WINDOW):
        presumed.update(step, figures)
    assert len(notes) == bool(said)
    if said:
        start, *rest = said.split(".*")
        assert notes[0].startswith(f"step {WINDOW}: ") and start in notes[0] and all(part in notes[0] for part in rest)


def test_a_step_in_between_is_averaged() -> None:
    notes: list[str] = []
    presumed = Presumed(load_recipe(RECIPES / "rltf_sd.yaml", []), notes.append)
    for step, gain in enumerate([-0.1, -0.1, 0.9, -0.1, -0.1], 1):
        presumed.update(step, {"revision_advantage": gain})
    assert notes == []
