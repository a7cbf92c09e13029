"""What the recipes say about themselves is true: cards exist, provenance names what is there and leaves nothing out."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer

from rlkd import cli
from rlkd.data.cards import load_card
from rlkd.data.fields import last_boxed
from rlkd.data.source import _apply
from rlkd.preflight import check_references
from rlkd.recipe import load_recipe
from rlkd.recipe.data import HubData
from rlkd.recipe.loading import read_recipe_file
from rlkd.trainer.eval_command import EvalJob

ROOT = Path(__file__).parents[2]
RECIPES = sorted((ROOT / "recipes").rglob("*.yaml"))
PAPER = sorted((ROOT / "recipes" / "paper").glob("*.yaml"))
TITLES = ("name", "description", "seed", "provenance")
LABELS = ("kind", "name", "card")  # which part is meant, not how it is set


def leaves(node: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted path and value of everything that a recipe sets."""
    pairs = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    for key, value in pairs:
        yield from leaves(value, f"{path}{key}.")
    if not isinstance(node, dict | list):
        yield path.rstrip("."), node


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_cards_exist(path: Path) -> None:
    cards = {card.stem for card in (ROOT / "data_cards").glob("*.yaml")}
    named = {value for key, value in leaves(read_recipe_file(path)) if key.endswith(".card") and value is not None}
    assert named <= cards


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_every_dataset_has_a_card_of_its_own(path: Path) -> None:
    """A file or hub set that a recipe reads names its card, and the card speaks about that set."""
    recipe = load_recipe(path)
    stages = [source for stage in recipe.stages for source in getattr(stage, "data", None) or ()]
    for source in (*recipe.data.train, *(recipe.data.eval or ()), *stages):
        if source.kind in ("file", "hub"):
            assert source.card is not None, f"{source.path} has no card"
            about = load_card(source.card).source
            derived = about.file is None and source.kind == "file"  # what `rlkd data pairs` wrote from the hub's rows
            assert derived or source.path == (about.hub if source.kind == "hub" else about.file)


def child(node: Any, part: str) -> Any:
    """What ``part`` names below ``node``; a source that stands alone needs no index. Raises: LookupError."""
    if isinstance(node, list):
        return node[int(part)] if part.isdigit() else child(node[0], part)
    if not isinstance(node, dict):
        raise LookupError(part)
    return node[part]


@pytest.mark.parametrize("path", [path for path in RECIPES if path not in PAPER], ids=lambda path: path.stem)
def test_what_a_recipe_names_is_there(path: Path) -> None:
    """Its files, cards, verifier and models; published settings read what only a download brings."""
    recipe = load_recipe(path)
    folder = path.parent / (recipe.data.dir or "")
    if recipe.data.dir and not folder.is_dir():
        pytest.skip(f"no shared data at {folder.resolve()}")
    check_references(recipe, path.parent)


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_the_commands_in_a_description_can_be_given(path: Path) -> None:
    """Evaluations that it names sample at least as long as the recipe trains; variants that it names are recipes."""
    recipe = load_recipe(path)
    evaluate = typer.main.get_command(cli.app).commands["eval"]  # type: ignore[attr-defined]
    for model, card, options in re.findall(r"rlkd eval (\S+) ([\w-]+)((?: --[a-z-]+ [\d.]+)*)", recipe.description):
        load_card(card)
        given = evaluate.make_context("eval", [model, card, *options.split()]).params
        wanted = ("samples", "temperature", "top_p", "max_new_tokens")
        made = EvalJob(model, "aime24", **{name: given[name] for name in wanted}).recipe()
        assert made.rollout.max_new_tokens >= recipe.rollout.max_new_tokens, options
    quoted = re.findall(r"'([\w.]+=[^']+)'((?: [\w.]+=[\w.+-]*\w)*)", recipe.description)
    for first, more in quoted:
        load_recipe(path, [first, *more.split()])


@pytest.mark.parametrize("path", PAPER, ids=lambda path: path.stem)
def test_provenance_names_what_is_there(path: Path) -> None:
    recipe = load_recipe(path).model_dump(mode="json")
    for key in recipe["provenance"]:
        node = recipe
        for part in key.split("."):
            node = child(node, part)


@pytest.mark.parametrize("path", PAPER, ids=lambda path: path.stem)
def test_every_setting_of_a_paper_has_its_provenance(path: Path) -> None:
    raw = read_recipe_file(path)
    for key, _ in leaves({name: section for name, section in raw.items() if name not in TITLES}):
        parts = key.split(".")
        covered = any(".".join(parts[: end + 1]) in raw["provenance"] for end in range(len(parts)))
        columns = "fields" in parts  # they belong to the data set, whose path has its provenance
        assert covered or columns or parts[-1] in LABELS, f"{key} has no provenance"


@pytest.mark.parametrize("version", ["v1", "v3"])
def test_an_opsd_recipe_reads_the_last_box_of_a_solution(version: str) -> None:
    """Braces within it and all; a row whose answer is not found would be left out."""
    (source,) = load_recipe(ROOT / "recipes" / "paper" / f"opsd-{version}-qwen3-1.7b.yaml").data.train
    assert isinstance(source, HubData)
    rule = source.fields.answer

    def answer(solution: str) -> str | None:
        return _apply(rule, {"solution": solution})

    for boxed in (
        "5",
        r"\frac{1}{2}",
        r"\text{(A)}",
        r"\sqrt{\frac{x^{2}}{3}}",
        r"\frac{\sqrt{\frac{1}{x^{2}}}}{3}",
        r"\{1, 2\}",
        r"\left\{ x \right.",
        "{}",
    ):
        solution = f"First \\boxed{{3}},\nthen $\\boxed{{{boxed}}}$, as {{was}} asked.\n"
        assert answer(solution) == last_boxed(solution) == boxed
    assert answer("no box") is None
    # none is ever closed: a pattern that goes back over its steps would not come to an end
    for part in ("x", "{", "{x}", r"\boxed{", r"\boxed{x ", r"\boxed{{a}{b{c}}"):
        assert answer("\\boxed{" + part * (20_000 // len(part))) is None
