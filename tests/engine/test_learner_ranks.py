"""The gradient does not depend on ranks, ZeRO stage or micro-batches: DeepSpeed itself, in Ray actors."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from rlkd.cluster import Cluster, Pending, Worker, gather
from rlkd.errors import ClusterError
from rlkd.learner.learner import Update
from rlkd.learner.loss import Denominators
from rlkd.learner.packing import split_groups
from rlkd.learner.policy import load_causal_lm
from rlkd.learner.trl_sft import checkpoint_step, finished, latest_checkpoint
from rlkd.recipe import Recipe, validate_recipe
from rlkd.recipe.offline import DpoObjective, FilePairs
from rlkd.recipe.schema import OfflineStage, OptimSpec, SftStage
from rlkd.records import TrainRow
from rlkd.trainer.assemble import plan_updates, share_update
from rlkd.trainer.console import Console
from rlkd.trainer.offline import pair_rows
from rlkd.trainer.pair_file import Pair
from rlkd.trainer.sft import _follow

pytestmark = pytest.mark.engine


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


def pair_updates(ranks: int, budget: int) -> list[list[Update]]:
    """Each rank's two updates: of three pairs, so that two ranks get unequal shares, and of two."""
    draw = random.Random(1)

    def ids(least: int, most: int) -> tuple[int, ...]:
        return tuple(draw.randrange(6, 250) for _ in range(draw.randrange(least, most)))

    pairs = [Pair(str(number), "", ids(2, 12), ids(1, 20), ids(1, 20)) for number in range(5)]
    updates = [
        share_update(
            split_groups(pair_rows(part, wrong=True)),
            Denominators(policy=float(len(part)), distill=0.0),
            ranks=ranks,
            token_budget=budget,
        )
        for part in (pairs[:3], pairs[3:])
    ]
    return [list(share) for share in zip(*updates, strict=True)]


class Ranks:
    """A process group of one or two ranks; each call makes its learners anew, in the same processes."""

    def __init__(self, cluster: Cluster, recipe: Recipe, folder: Path, count: int) -> None:
        self.cluster, self.recipe, self.folder, self.count = cluster, recipe, folder, count
        self.workers = [cluster.spawn(f"ranks-{count}-{rank}") for rank in range(count)]
        address = cluster.address(self.workers[0])
        self._build("rlkd.learner.worker:join_process_group", world_size=count, address=address)

    def _build(self, target: str, *given: Any, **options: Any) -> None:
        """Call ``target`` in every rank's process; what it returns takes the calls that follow."""
        calls = [self.cluster.build(w, target, *given, rank=rank, **options) for rank, w in enumerate(self.workers)]
        gather(calls, 300.0)

    def learners(
        self,
        *,
        zero: int,
        budget: int,
        updates: int = 1,
        lora: dict[str, Any] | None = None,
        offline: OfflineStage | None = None,
    ) -> list[list[Update]]:
        """Make each rank's learner. Returns: each one's updates of the rows above, or of the pairs."""
        raw = self.recipe.model_dump(mode="json")
        raw["learner"] |= {"zero_stage": zero, "tokens_per_micro_batch": budget, "updates_per_step": updates}
        raw["learner"]["lora"] = lora
        chosen = validate_recipe(raw, where="test")
        gather([self.cluster.build(w, "torch:manual_seed", 0) for w in self.workers], 60.0)  # new adapters are drawn
        options: dict[str, Any] = {"world_size": self.count, "total_updates": updates}
        if offline is None:
            self._build("rlkd.learner.learner:Learner", chosen, self.folder, **options)
            return plan_updates(chosen, rows(), ranks=self.count)
        self._build("rlkd.learner.pairs:PairLearner", chosen, self.folder, stage=offline, **options)
        return pair_updates(self.count, budget)

    def call(self, method: str, given: Sequence[Any], **options: Any) -> Any:
        """``method`` on every rank, each with its own of ``given``. Returns: rank 0's answer."""
        ranked = zip(self.workers, given, strict=True)
        return gather([worker.submit(method, own, **options) for worker, own in ranked], 300.0)[0]

    def gradients(self, *, zero: int, budget: int) -> dict[str, Tensor]:
        shares = self.learners(zero=zero, budget=budget)
        return dict(self.call("gradients", [share[0] for share in shares], step=0))

    def trained(self, *, zero: int, budget: int, updates: int) -> dict[str, Tensor]:
        self.call("train_step", self.learners(zero=zero, budget=budget, updates=updates), step=0)
        return dict(gather([worker.submit("export_weights") for worker in self.workers], 120.0)[0][0])


@pytest.fixture(scope="module")
def one(cluster: Cluster, recipe: Recipe, folders: dict[str, Path]) -> Ranks:
    return Ranks(cluster, recipe, folders["teacher"], 1)


@pytest.fixture(scope="module")
def two(cluster: Cluster, recipe: Recipe, folders: dict[str, Path]) -> Ranks:
    return Ranks(cluster, recipe, folders["teacher"], 2)


@pytest.fixture(scope="module")
def single(one: Ranks) -> dict[str, Tensor]:
    return one.gradients(zero=0, budget=10**6)


@pytest.mark.parametrize(
    ("ranks", "zero", "budget"), [("one", 0, 40), ("two", 0, 10**6), ("two", 2, 60), ("two", 3, 60)]
)
def test_gradients_are_the_same(
    request: pytest.FixtureRequest, single: dict[str, Tensor], ranks: str, zero: int, budget: int
) -> None:
    found = request.getfixturevalue(ranks).gradients(zero=zero, budget=budget)
    assert found.keys() == single.keys()
    assert max(float(tensor.abs().max()) for tensor in single.values()) > 1e-2
    assert max(tensor.numel() for tensor in single.values()) > 10**5  # DeepSpeed keeps smaller weights whole
    for name, tensor in single.items():
        gap = float((found[name] - tensor).abs().max())
        assert gap <= 1e-6, f"{name}: {gap}"


@pytest.mark.parametrize("stage", [0, 2, 3])
def test_bfloat16_gradients_are_added_up_in_float32(stage: int, tmp_path: Path) -> None:
    """DeepSpeed's default is bfloat16, 8e-3 off after 64 micro-batches. It compiles nothing on the way either."""
    command = [sys.executable, str(Path(__file__).with_name("accumulate.py")), str(stage), str(tmp_path / "store")]
    environment = {**os.environ, "TORCH_EXTENSIONS_DIR": str(tmp_path / "built")}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert float(done.stdout.rpartition("relative error ")[2]) < 1e-5
    assert not (tmp_path / "built").exists()


def test_each_rank_keeps_its_share_of_a_model_that_is_loaded_for_zero_3(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    """Each of two ranks has half before DeepSpeed starts; what is loaded afterwards is whole again."""
    script = str(Path(__file__).with_name("sharded_loading.py"))
    ranks = [
        subprocess.Popen(
            [sys.executable, script, str(rank), str(tmp_path / "store"), str(folders["teacher"])],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    for rank in ranks:
        said, errors = rank.communicate(timeout=300)
        assert rank.returncode == 0, errors[-3000:]
        assert float(said.rpartition("share ")[2]) == pytest.approx(0.5, abs=0.01)


def test_several_updates_are_the_same_on_ranks_with_unequal_work(
    one: Ranks, two: Ranks, folders: dict[str, Path]
) -> None:
    """Five groups in three updates: some have work for one rank only, which must wait for nobody under ZeRO-3."""
    alone = one.trained(zero=0, budget=10**6, updates=3)
    shared = two.trained(zero=3, budget=40, updates=3)
    start = dict(load_causal_lm(folders["teacher"], dtype=torch.float32).state_dict())
    moved = sum(float((tensor - start[name]).square().sum()) for name, tensor in alone.items())
    apart = sum(float((tensor - shared[name]).square().sum()) for name, tensor in alone.items())
    assert moved > 0
    assert apart < 1e-6 * moved


@pytest.mark.parametrize("lora", [None, {"rank": 4, "alpha": 8}])
def test_gradients_of_pairs_are_the_same(one: Ranks, two: Ranks, lora: dict[str, Any] | None) -> None:
    """DPO reads both scores of a pair and a reference: a whole copy, or the model without its adapters.

    The gradient is that of the second update, in which policy and reference differ. What the first one left of
    rounding Adam may raise where a gradient is next to nothing: hence the bound.
    """
    stage = OfflineStage(
        name="dpo",
        pairs=FilePairs(path="x"),
        objective=DpoObjective(inverse_temperature=0.3),
        steps=2,
        optim=OptimSpec(lr=1e-3),
    )

    def second(ranks: Ranks, *, zero: int, budget: int) -> dict[str, Tensor]:
        shares = ranks.learners(zero=zero, budget=budget, updates=2, lora=lora, offline=stage)
        ranks.call("train_step", [share[:1] for share in shares], step=0)
        return dict(ranks.call("gradients", [share[1] for share in shares], step=1))

    alone, shared = second(one, zero=0, budget=10**6), second(two, zero=3, budget=40)
    assert shared.keys() == alone.keys() and all(("lora" in name) == (lora is not None) for name in alone)
    largest = max(float(tensor.abs().max()) for tensor in alone.values())
    assert largest > 1e-3
    for name, tensor in alone.items():
        gap = float((shared[name] - tensor).abs().max())
        assert gap <= 1e-4 * largest, f"{name}: {gap}, largest {largest}"


def sft_pairs() -> list[tuple[list[int], list[int]]]:
    """Solutions of very different lengths."""
    draw = random.Random(2)
    return [([7, 8, 9], [draw.randrange(6, 250) for _ in range(length)]) for length in (1, 2, 30, 3, 40, 1, 2, 25)]


def sft_workers(cluster: Cluster, count: int) -> list[Worker]:
    workers = [cluster.spawn(f"sft-{rank}") for rank in range(count)]
    target, address = "rlkd.learner.trl_sft:SftWorker", cluster.address(workers[0])
    gather([cluster.build(w, target, rank=r, world_size=count, address=address) for r, w in enumerate(workers)], 300.0)
    return workers


def submit_sft(workers: Sequence[Worker], source: Path, output: Path, stage: SftStage, **options: Any) -> list[Pending]:
    job: dict[str, Any] = {"folder": str(source), "output": str(output), "pairs": sft_pairs(), "seed": 0}
    job |= {"stage": stage.model_dump(), "learner": {}, "progress": f"{output}.txt", "checkpoint": {}}
    return [worker.submit("train", **(job | options)) for worker in workers]


def test_sft_does_not_depend_on_micro_batches(cluster: Cluster, folders: dict[str, Path], tmp_path: Path) -> None:
    """A mean of micro-batches' means would weigh the tokens of short solutions more."""
    stage = SftStage(steps=2, batch_size=8, max_length=50, optim=OptimSpec(lr=1e-3, schedule="constant"))
    workers, source = sft_workers(cluster, 1), folders["teacher"]
    for name, budget in (("whole", 10**6), ("cut", 100)):
        learner = {"tokens_per_micro_batch": budget}
        gather(submit_sft(workers, source, tmp_path / name, stage, learner=learner), 300.0)
    start, whole, cut = (
        dict(load_causal_lm(folder, dtype=torch.float32).state_dict())
        for folder in (source, tmp_path / "whole", tmp_path / "cut")
    )
    moved = sum(float((tensor - start[name]).square().sum()) for name, tensor in whole.items())
    apart = sum(float((tensor - cut[name]).square().sum()) for name, tensor in whole.items())
    assert moved > 0
    assert apart < 1e-6 * moved


def test_sft_on_two_ranks_shards_the_optimizer_and_names_a_rank_that_fails(
    cluster: Cluster, folders: dict[str, Path], tmp_path: Path
) -> None:
    """The other ranks wait for it; to ask rank 0 alone would blame rank 0, after the deadline of a step."""
    stage = SftStage(steps=2, batch_size=8, max_length=50, optim=OptimSpec(lr=1e-3, schedule="constant"))
    workers = sft_workers(cluster, 2)
    for zero in (0, 2):
        learner = {"zero_stage": zero}
        gather(submit_sft(workers, folders["teacher"], tmp_path / f"zero-{zero}", stage, learner=learner), 300.0)
    whole, sharded = (
        dict(load_causal_lm(tmp_path / f"zero-{zero}", dtype=torch.float32).state_dict()) for zero in (0, 2)
    )
    assert max(float((tensor - sharded[name]).abs().max()) for name, tensor in whole.items()) < 1e-6
    calls = submit_sft(workers[:1], folders["teacher"], tmp_path / "out", stage)
    calls += submit_sft(workers[1:], tmp_path / "nothing", tmp_path / "out", stage)
    recipe = SimpleNamespace(cluster=SimpleNamespace(step_deadline_s=300.0))
    run: Any = SimpleNamespace(recipe=recipe, console=Console())
    with pytest.raises(ClusterError, match="sft-1 failed in `train`"):
        _follow(run, stage, calls, tmp_path / "out.txt")
    for worker in workers:
        cluster.stop(worker)


def test_sft_on_two_ranks_goes_on_from_its_checkpoint(
    cluster: Cluster, folders: dict[str, Path], tmp_path: Path
) -> None:
    """Killed after its first pass over the data; ZeRO-3 shards optimizer and weights."""
    stage = SftStage(steps=40, batch_size=4, max_length=50, optim=OptimSpec(lr=1e-3, schedule="cosine"))
    options: dict[str, Any] = {"learner": {"zero_stage": 3}, "checkpoint": {"sft_every": 3}}
    source, killed, undisturbed = folders["teacher"], tmp_path / "killed", tmp_path / "undisturbed"
    workers, until = sft_workers(cluster, 2), time.monotonic() + 300
    submit_sft(workers, source, killed, stage, **options)
    while latest_checkpoint(killed) is None and time.monotonic() < until:
        time.sleep(0.01)
    for worker in workers:
        cluster.stop(worker)
    assert not killed.exists(), "the stage ended before it could be killed"
    resume, told = latest_checkpoint(killed), tmp_path / "resumed.txt"
    assert resume is not None
    begun = checkpoint_step(resume)
    workers = sft_workers(cluster, 2)
    gather(submit_sft(workers, source, killed, stage, **options, progress=str(told), resume=str(resume)), 300.0)
    assert [int(line.split()[0]) for line in told.read_text().splitlines()] == [*range(begun + 1, 41)]
    gather(submit_sft(workers, source, undisturbed, stage, **options), 300.0)
    left, right = (dict(load_causal_lm(f, dtype=torch.float32).state_dict()) for f in (killed, undisturbed))
    assert max(float((tensor - left[name]).abs().max()) for name, tensor in right.items()) == 0.0
    assert latest_checkpoint(killed) is None
    told_of = finished(killed)
    assert told_of is not None
    assert told_of["loss"] > 0
