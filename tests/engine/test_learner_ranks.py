"""The gradient does not depend on ranks, ZeRO stage or micro-batches: DeepSpeed itself, in Ray actors."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from torch import Tensor

from rlkd.cluster import Cluster, Worker, gather
from rlkd.learner.learner import Update
from rlkd.learner.policy import load_causal_lm
from rlkd.recipe import Recipe, validate_recipe
from rlkd.records import TrainRow
from rlkd.trainer.assemble import plan_updates

pytestmark = [pytest.mark.engine, pytest.mark.xdist_group("engine")]


def rows() -> list[TrainRow]:
    """Groups of many lengths; an odd number, so that two ranks get unequal shares."""
    draw = random.Random(0)
    made: list[TrainRow] = []
    for group in range(5):
        prompt = tuple(draw.randrange(6, 250) for _ in range(draw.randrange(2, 12)))
        for _ in range(3):
            completion = tuple(draw.randrange(6, 250) for _ in range(draw.randrange(1, 20)))
            logprobs = tuple(-5 - draw.random() for _ in completion)
            made.append(
                TrainRow(
                    group,
                    prompt,
                    completion,
                    logprobs,
                    draw.gauss(0, 1),
                    index=len(made),
                    teacher_logprobs=logprobs[::-1],
                )
            )
    return made


@contextmanager
def learners(
    cluster: Cluster, recipe: Recipe, folder: Path, *, ranks: int, zero: int, budget: int, updates: int = 1
) -> Iterator[tuple[list[Worker], list[list[Update]]]]:
    """Started ranks, and each one's updates of the rows above."""
    raw = recipe.model_dump(mode="json")
    raw["learner"] |= {"zero_stage": zero, "tokens_per_micro_batch": budget, "updates_per_step": updates}
    chosen = validate_recipe(raw, where="test")
    workers = [cluster.spawn(f"LearnerWorker-{ranks}-{zero}-{budget}-{rank}") for rank in range(ranks)]
    options = {"world_size": ranks, "address": cluster.address(workers[0]), "total_updates": updates}
    gather(
        [
            cluster.build(w, "rlkd.learner.worker:LearnerWorker", raw, str(folder), rank=rank, **options)
            for rank, w in enumerate(workers)
        ],
        300.0,
    )
    yield workers, plan_updates(chosen, rows(), ranks=ranks)
    for worker in workers:
        cluster.stop(worker)


def gradients(cluster: Cluster, recipe: Recipe, folder: Path, **layout: int) -> dict[str, Tensor]:
    with learners(cluster, recipe, folder, **layout) as (workers, shares):  # type: ignore[arg-type]
        calls = [w.submit("gradients", share[0], step=0) for w, share in zip(workers, shares, strict=True)]
        return dict(gather(calls, 300.0)[0])


def trained(cluster: Cluster, recipe: Recipe, folder: Path, **layout: int) -> dict[str, Tensor]:
    with learners(cluster, recipe, folder, **layout) as (workers, shares):  # type: ignore[arg-type]
        gather([w.submit("train_step", share, step=0) for w, share in zip(workers, shares, strict=True)], 120.0)
        return dict(gather([w.submit("export_weights") for w in workers], 120.0)[0][0])


@pytest.fixture(scope="module")
def single(cluster: Cluster, recipe: Recipe, folders: dict[str, Path]) -> dict[str, Tensor]:
    return gradients(cluster, recipe, folders["teacher"], ranks=1, zero=0, budget=10**6)


@pytest.mark.parametrize(("ranks", "zero", "budget"), [(1, 0, 40), (2, 0, 10**6), (2, 2, 60), (2, 3, 60)])
def test_gradients_are_the_same(
    cluster: Cluster,
    recipe: Recipe,
    folders: dict[str, Path],
    single: dict[str, Tensor],
    ranks: int,
    zero: int,
    budget: int,
) -> None:
    found = gradients(cluster, recipe, folders["teacher"], ranks=ranks, zero=zero, budget=budget)
    assert found.keys() == single.keys()
    assert max(float(tensor.abs().max()) for tensor in single.values()) > 1e-2
    assert max(tensor.numel() for tensor in single.values()) > 10**5  # DeepSpeed keeps smaller weights whole
    for name, tensor in single.items():
        gap = float((found[name] - tensor).abs().max())
        assert gap <= 1e-6, f"{name}: {gap}"


def test_several_updates_are_the_same_on_ranks_with_unequal_work(
    cluster: Cluster, recipe: Recipe, folders: dict[str, Path]
) -> None:
    """Five groups in three updates: some have work for one rank only, which must wait for nobody under ZeRO-3."""
    one = trained(cluster, recipe, folders["teacher"], ranks=1, zero=0, budget=10**6, updates=3)
    two = trained(cluster, recipe, folders["teacher"], ranks=2, zero=3, budget=40, updates=3)
    start = dict(load_causal_lm(folders["teacher"], dtype=torch.float32).state_dict())
    moved = sum(float((tensor - start[name]).square().sum()) for name, tensor in one.items())
    apart = sum(float((tensor - two[name]).square().sum()) for name, tensor in one.items())
    assert moved > 0
    assert apart < 1e-6 * moved
