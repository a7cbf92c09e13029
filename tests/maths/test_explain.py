"""The index is complete: every function is documented, tested and part of a method; every test named exists."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from rlkd.errors import RlkdError
from rlkd.explain import RECIPES, entries, explain, index, recipe_kinds, recipes_of, render_index, split_overrides
from rlkd.methods import METHODS
from rlkd.recipe import load_recipe

TESTS = {
    name
    for file in Path(__file__).parent.glob("test_*.py")
    for name in re.findall(r"^def (test_\w+)", file.read_text(), re.M)
}
# Ground work that belongs to no paper.
GROUND = {
    "as_float",
    "require_mask",
    "require_same_shape",
    "select",
    "masked_sum",
    "masked_mean",
    "chunked_logprobs",
    "chunked_rows",
    "log_ratio",
    "loss_estimator",
}
# Formulas that are not losses: nothing is differentiated through them.
WITHOUT_GRADIENT = {"complete", "local_denominator", "prior_weights", "soft_overlong_penalty", "mixed_source_weights"}
WITHOUT_GRADIENT |= {"mix_teachers", "aligned_gradient"}
# Papers whose objectives must be there: the core ones, and the token-level methods of priority 1 and 2.
PAPERS = {
    "2506.02208", "2505.24850", "2601.18734", "2602.04942", "2602.02482", "2505.17952", "2504.11456",
    "2503.20083", "2403.01427", "2506.12542", "2411.08937", "2312.15112", "2102.13088", "2403.07854",
    "2009.08453", "2501.07575", "2103.05959",
}  # fmt: skip


@pytest.mark.parametrize("name", sorted(entries()))
def test_every_function_is_explained_and_tested(name: str) -> None:
    entry = entries()[name]
    assert entry.summary.rstrip().endswith((".", ":")) or "\n" not in entry.text
    if name in {"as_float", "require_mask", "require_same_shape"}:
        return
    if name in {"constant", "hard_switch"}:
        assert "step" in entry.text
        return
    assert entry.tests, f"{name} names no test"
    missing = [test for test in entry.tests if test not in TESTS]
    assert not missing, f"{name} names tests that don't exist: {missing}"
    assert name in explain(name)


@pytest.mark.parametrize("name", sorted(METHODS))
def test_every_method_is_made_of_known_functions(name: str) -> None:
    functions = entries()
    assert [part for part in METHODS[name].parts if part not in functions] == []
    text = explain(name)
    assert "Tested:" in text or name in functions


def test_every_function_belongs_to_a_method() -> None:
    parts = {part for method in METHODS.values() for part in method.parts}
    assert set(entries()) - parts - GROUND == set()


def test_every_required_paper_is_covered() -> None:
    covered = {row.paper for row in index() if row.tests}
    assert covered >= PAPERS


def test_every_recipe_is_in_the_index() -> None:
    """A recipe whose objective no method claims would be undocumented."""
    listed = {recipe for row in index() for recipe in row.recipes}
    assert set(recipe_kinds()) == listed
    assert listed


def test_recipes_stand_beside_their_own_method() -> None:
    """By the file's name too: two methods that share a `kind:` are told apart, and none is left without its recipe."""
    assert "rltf_fm.yaml" in recipes_of("rltf_fm")
    assert "rltf_fm.yaml" not in recipes_of("rltf_sd")
    assert "paper/rltf-sd-deepmath.yaml" in recipes_of("rltf_sd")
    for method, recipe in (
        ("alm", "alm.yaml"),
        ("alphamed", "alphamed.yaml"),
        ("deepmath", "paper/deepmath-zero-7b.yaml"),
    ):
        assert recipe in recipes_of(method)


def test_what_is_printed_fits_a_terminal() -> None:
    pages = [render_index(), *(explain(name) for name in (*METHODS, *entries()))]
    assert max(len(line) for page in pages for line in page.splitlines()) <= 120
    assert not any("``" in page for page in pages)


def test_losses_state_their_gradient_and_source() -> None:
    losses = [e for e in entries().values() if e.formula and e.name not in GROUND and "Gradient" not in e.sections]
    assert {e.name for e in losses} <= WITHOUT_GRADIENT


@pytest.mark.parametrize("name", [name for name, method in METHODS.items() if method.overrides])
def test_what_makes_a_recipe_of_a_method_is_a_recipe(name: str) -> None:
    load_recipe(RECIPES / "grpo.yaml", split_overrides(METHODS[name].overrides))
    assert "In a recipe: recipes/grpo.yaml" in " ".join(explain(name).split())


def test_a_kind_of_objective_is_explained_by_its_methods() -> None:
    assert "RLTF-SD" in explain("rltf")
    assert "RLTF-FM" in explain("rltf")
    assert "KD-RKL" in explain("distill")
    assert "no key names it" in explain("cispo")


def test_explain_knows_estimators_and_near_misses() -> None:
    assert "the teacher drops out" in explain("k1")
    assert "reverse KL, exact" in explain("K2")
    assert "forward KL, exact" in explain("low_var_kl")
    assert "Eq 8" in explain("kdrl")
    assert "KDRL" in render_index()
    assert "teacher_share by a linear" in explain("pi-distill")  # a function and a method: both are shown
    assert "paper/pi-distill-qwen3-4b.yaml" in explain("pi_distill")
    with pytest.raises(RlkdError, match="did you mean 'reverse_kl_k2'"):
        explain("reverse_kl_k22")
