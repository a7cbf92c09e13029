"""GPUs counted before anything starts, and which way weights go: no GPU is needed to know either."""

from __future__ import annotations

from pathlib import Path

import pytest

from rlkd import train
from rlkd.cluster import Hardware, check_fit, gpu_share, weights_transport
from rlkd.cluster.hardware import gpu_need
from rlkd.errors import RecipeError
from rlkd.recipe import Recipe, load_recipe

RECIPES = Path(__file__).parents[2] / "recipes"
CPU, SHARED, EIGHT = Hardware(2, 0), Hardware(16, 1), Hardware(64, 8)


def recipe(*overrides: str, name: str = "kdrl") -> Recipe:
    return load_recipe(RECIPES / f"{name}.yaml", overrides)


WIDE = ("engine.tensor_parallel=2", "cluster.rollout_workers=2", "cluster.learner_workers=4")
PAIRS = ("cluster.placement=colocated", "cluster.rollout_workers=4", "cluster.learner_workers=4")


@pytest.mark.parametrize(
    ("chosen", "gpus"),
    [
        (recipe(), 1 + 1 + 1),  # learner, engine, teacher
        (recipe(*WIDE), 4 + 2 * 2 + 1 * 2),
        (recipe(*WIDE, "teacher.engine=transformers"), 4 + 2 * 2 + 1),
        (recipe(*WIDE[:2], "teacher.engine=transformers"), 2 * 2 + 2 * 2),  # engines of the SFT teacher's evaluation
        (recipe(*WIDE[:2], "teacher.engine=transformers", "data.eval=null", "eval={}"), 2 * 2 + 1 + 1),
        (recipe(*WIDE, "cluster.teacher_workers=3"), 4 + 2 * 2 + 3 * 2),
        (recipe(*PAIRS), 4 + 1),  # learner and engine of a pair are counted once
        (recipe(*WIDE, name="grpo"), 4 + 2 * 2),  # no teacher
        (recipe("cluster.learner_workers=3", "stages=[]", name="grpo"), 1),  # only evaluated
        (recipe(*PAIRS, name="grpo"), 4),
    ],
)
def test_gpus_are_summed_over_what_runs_at_once(chosen: Recipe, gpus: int) -> None:
    assert gpu_need(chosen).total == gpus
    check_fit(chosen, Hardware(64, gpus))
    if gpus > 1:
        with pytest.raises(RecipeError, match=rf"the workers need {gpus} GPUs and there are {gpus - 1} "):
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
    assert "counted once" in gpu_need(recipe(*PAIRS)).describe(recipe(*PAIRS))


def test_what_is_said_to_help_does() -> None:
    """KDRL on one GPU: its teacher needs one beside the pair; on two, the pair shares one."""
    with pytest.raises(RecipeError) as caught:
        check_fit(recipe(), Hardware(8, 1))
    assert "colocated" not in str(caught.value)
    assert "let a server hold the teacher" in str(caught.value)
    with pytest.raises(RecipeError, match=r"write cluster\.placement: colocated"):
        check_fit(recipe(), Hardware(8, 2))
    check_fit(recipe("cluster.placement=colocated"), Hardware(8, 2))


def test_an_engine_beside_a_learner_takes_less_of_the_gpu() -> None:
    assert gpu_share(recipe()) == 0.85
    assert gpu_share(recipe(*PAIRS)) == 0.4
    assert gpu_share(recipe(*PAIRS), beside_learner=False) == 0.85
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
