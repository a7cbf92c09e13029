"""GPUs counted before anything starts, and which way weights go: no GPU is needed to know either."""

from __future__ import annotations

from pathlib import Path

import pytest

from rlkd import train
from rlkd.cluster import Hardware, check_fit, gpu_share, settle, sharing, teachers_beside, weights_transport
from rlkd.cluster.fit import gpus_in_words
from rlkd.errors import RecipeError
from rlkd.recipe import Recipe, load_recipe

RECIPES = Path(__file__).parents[2] / "recipes"
CPU, SHARED, EIGHT = Hardware(2, 0), Hardware(16, 1), Hardware(64, 8)


def recipe(*overrides: str, name: str = "kdrl") -> Recipe:
    return load_recipe(RECIPES / f"{name}.yaml", overrides)


APART = "cluster.placement=separate"
WIDE = ("engine.tensor_parallel=2", "cluster.rollout_workers=2", "cluster.learner_workers=4")
PAIRS = ("cluster.placement=colocated", "cluster.rollout_workers=4", "cluster.learner_workers=4")


@pytest.mark.parametrize(
    ("chosen", "gpus"),
    [
        (recipe(APART), 1 + 1 + 1),  # learner, engine, teacher
        (recipe(*WIDE), 4 + 2 * 2 + 1 * 2),
        (recipe(*WIDE, "teacher.engine=transformers"), 4 + 2 * 2 + 1),
        (recipe(*WIDE[:2], "teacher.engine=transformers"), 2 * 2 + 2 * 2),  # engines of the SFT teacher's evaluation
        (recipe(*WIDE[:2], "teacher.engine=transformers", "data.eval=null", "eval={}"), 2 * 2 + 1 + 1),
        (recipe(*WIDE, "cluster.teacher_workers=3"), 4 + 2 * 2 + 3 * 2),
        (recipe(*PAIRS), 4),  # learner, engine and, where no fifth is left, the teacher of a pair are counted once
        (recipe(*WIDE, name="grpo"), 4 + 2 * 2),  # no teacher
        (recipe("cluster.learner_workers=3", "stages=[]", name="grpo"), 1),  # only evaluated
        (recipe(*PAIRS, name="grpo"), 4),
        (recipe(), 1),
        (recipe("cluster.schedule=async"), 3),  # which can't take turns
        (recipe("cluster.weights=nccl"), 3),
        (recipe("cluster.learner_workers=2", "cluster.rollout_workers=2"), 2),
        (recipe("cluster.learner_workers=2"), 2 + 1 + 1),  # no pairs: nothing to share
    ],
)
def test_gpus_are_summed_over_what_runs_at_once(chosen: Recipe, gpus: int) -> None:
    check_fit(chosen, Hardware(64, gpus))
    if gpus > 1:
        with pytest.raises(RecipeError, match=rf"workers.* need {gpus} GPUs and there are {gpus - 1} "):
            check_fit(chosen, Hardware(64, gpus - 1))


def test_too_few_gpus_name_every_key_that_counts() -> None:
    with pytest.raises(RecipeError) as caught:
        check_fit(recipe(*WIDE), Hardware(8, 2))
    for part in (
        "cluster.learner_workers: 4",
        "cluster.rollout_workers: 2 x engine.tensor_parallel: 2",
        "cluster.teacher_workers: 1, 2 GPU(s)",
        "1 node(s), 8 CPU cores, 2 GPUs",
    ):
        assert part in str(caught.value)


def test_what_is_said_to_help_does() -> None:
    """One GPU: whoever asked for one each may share it, or let a server hold the teacher where that is enough."""
    with pytest.raises(RecipeError, match=r"write cluster\.placement: colocated") as caught:
        check_fit(recipe(APART), Hardware(8, 1))
    assert "server" not in str(caught.value)  # learner and engine alone are one too many
    with pytest.raises(RecipeError, match="let a server hold the teacher") as caught:
        check_fit(recipe("cluster.schedule=async"), Hardware(8, 2))
    assert "colocated" not in str(caught.value)
    check_fit(recipe("cluster.placement=colocated"), Hardware(8, 1))


@pytest.mark.parametrize(
    ("overrides", "gpus", "placement", "beside"),
    [
        ([], 0, "separate", 0),
        ([], 1, "colocated", 1),
        ([], 2, "colocated", 0),  # the teacher has the second
        ([], 3, "separate", 0),
        (["cluster.weights=ipc"], 8, "colocated", 0),
        (["cluster.schedule=async"], 1, "separate", 0),  # and is refused
        (["cluster.placement=separate"], 1, "separate", 0),
        (["cluster.placement=colocated"], 8, "colocated", 0),
        (["cluster.rollout_workers=4", "cluster.learner_workers=4"], 4, "colocated", 1),
        (["cluster.rollout_workers=4", "cluster.learner_workers=4", "cluster.teacher_workers=2"], 5, "colocated", 1),
    ],
)
def test_gpus_are_shared_where_not_each_worker_can_have_one(
    overrides: list[str], gpus: int, placement: str, beside: int
) -> None:
    chosen = settle(recipe(*overrides), Hardware(64, gpus))
    assert chosen.cluster.placement == placement
    assert teachers_beside(chosen, Hardware(64, gpus)) == beside


def test_each_worker_of_a_teacher_beside_sits_at_another_pair() -> None:
    with pytest.raises(RecipeError, match=r"cluster\.teacher_workers: 2 on the GPUs of 1 pair"):
        check_fit(recipe("cluster.teacher_workers=2", "cluster.placement=colocated"), SHARED)


@pytest.mark.parametrize("name", [path.stem for path in sorted(RECIPES.glob("*.yaml"))])
def test_every_embedded_recipe_fits_one_gpu(name: str) -> None:
    check_fit(recipe(name=name), SHARED)


def test_what_is_shared_is_said() -> None:
    assert "3 GPU(s) with a worker on each or 1 GPU(s) that workers take turns on" in gpus_in_words(recipe())
    assert "take turns" not in gpus_in_words(recipe("cluster.learner_workers=2"))  # no pairs
    said = sharing(settle(recipe(), SHARED), SHARED)
    assert said == "learner, engine and teacher take turns on 1 GPU(s); with 3 GPUs each would have one of its own"
    assert "learner and engine take" in sharing(settle(recipe(), Hardware(8, 2)), Hardware(8, 2))


def test_an_engine_beside_a_learner_takes_less_of_the_gpu() -> None:
    assert gpu_share(recipe(APART)) == 0.85
    assert gpu_share(recipe(*PAIRS)) == 0.4
    assert gpu_share(recipe(*PAIRS), teacher=True) == 0.85
    assert gpu_share(recipe(*PAIRS), teacher=True, beside=2) == 0.1
    assert gpu_share(recipe(*PAIRS, "engine.gpu_memory_utilization=0.6")) == 0.6


@pytest.mark.parametrize(
    ("overrides", "hardware", "said"),
    [
        (["cluster.weights=nccl"], CPU, "cluster.weights: 'nccl', but there is no GPU here"),
        (["cluster.weights=ipc", "cluster.placement=colocated"], CPU, "cluster.weights: 'ipc', but there is no GPU"),
        (["engine.tensor_parallel=2"], CPU, "engine.tensor_parallel: 2, but there is no GPU here"),
        (["cluster.weights=gloo"], EIGHT, "cluster.weights: 'gloo' is for machines without a GPU"),
        (["cluster.weights=ipc", *PAIRS], Hardware(64, 16, nodes=2), "cluster.weights: 'ipc' on 2 nodes"),
        (["cluster.placement=colocated", "cluster.rollout_workers=2"], EIGHT, "cluster.rollout_workers: 2 with"),
    ],
)
def test_what_the_machine_cannot_do_is_an_error(overrides: list[str], hardware: Hardware, said: str) -> None:
    with pytest.raises(RecipeError) as caught:
        check_fit(recipe(*overrides), hardware)
    assert said in str(caught.value)


def test_a_run_that_does_not_fit_starts_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rlkd.trainer.run.this_machine", lambda: CPU)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    with pytest.raises(RecipeError, match=r"cluster.weights: 'nccl', but there is no GPU"):
        train(recipe("cluster.weights=nccl"), out=tmp_path / "run")
    assert not (tmp_path / "run" / "models").exists()
    assert not (tmp_path / "run" / "logs").exists()


def test_the_way_of_weights_follows_the_machine() -> None:
    shared = recipe("cluster.placement=colocated", name="grpo")
    assert weights_transport(recipe(), CPU) == "object_store"
    assert weights_transport(recipe(), EIGHT) == "nccl"
    assert weights_transport(shared, SHARED) == "ipc"
    assert weights_transport(shared, CPU) == "object_store"
    assert weights_transport(shared, Hardware(64, 8, nodes=2)) == "object_store"
    for chosen in ("object_store", "gloo"):
        assert weights_transport(recipe(f"cluster.weights={chosen}"), CPU) == chosen
