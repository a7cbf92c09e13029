"""Weights to the engines through vLLM's transfer protocol, over gloo: what NCCL does on GPUs, less the communicator."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from rlkd.cluster import Cluster, Worker, gather
from rlkd.errors import ClusterError, RolloutError
from rlkd.learner.packing import score_sequences
from rlkd.learner.policy import PackedPolicy, load_causal_lm
from rlkd.learner.weights import Sent
from rlkd.recipe import Recipe, validate_recipe
from rlkd.rollout.vllm_engine import EngineSettings
from rlkd.trainer.fleet import Fleet
from rlkd.trainer.learners import Learners
from rlkd.trainer.publication import Publication

pytestmark = pytest.mark.engine
PROBE = (tuple(range(30, 60)), tuple(range(40, 60)))


@pytest.fixture(scope="module")
def sharded(recipe: Recipe) -> Recipe:
    """ZeRO-3: layers have to be gathered on their way. Models of the teacher's size: no small weight is sharded."""
    raw = recipe.model_dump(mode="json")
    raw["learner"] |= {"zero_stage": 3}
    return validate_recipe(raw, where="test")


@pytest.fixture(scope="module")
def learners(cluster: Cluster, sharded: Recipe, folders: dict[str, Path]) -> Iterator[list[Worker]]:
    """Two ranks that hold the weights of ``other-teacher``."""
    workers = [cluster.spawn(f"LearnerWorker-transfer-{rank}") for rank in range(2)]
    options = {"world_size": 2, "address": cluster.address(workers[0]), "total_updates": 1}
    raw = sharded.model_dump(mode="json")
    gather(
        [
            cluster.build(
                w, "rlkd.learner.worker:LearnerWorker", raw, str(folders["other-teacher"]), rank=rank, **options
            )
            for rank, w in enumerate(workers)
        ],
        300.0,
    )
    yield workers
    for worker in workers:
        cluster.stop(worker)


@pytest.fixture(scope="module")
def fleet(cluster: Cluster, folders: dict[str, Path]) -> Iterator[Fleet]:
    """Two engines that start with the weights of ``teacher``."""
    settings = EngineSettings(str(folders["teacher"]), "float32", 96, 64, on_gpu=False, transport="gloo")
    fleet = Fleet(cluster, "RolloutWorker-transfer", settings, "rlkd.rollout.worker:RolloutWorker", 120.0, gpus=0.0)
    gather(fleet.start(2), 300.0)
    yield fleet
    fleet.stop()


@pytest.fixture(scope="module")
def publication(cluster: Cluster, sharded: Recipe, learners: list[Worker]) -> Publication:
    run: Any = SimpleNamespace(recipe=sharded, cluster=cluster)
    return Publication(run, Learners(run, learners), PROBE)


def known(folder: Path) -> list[float]:
    policy = PackedPolicy(load_causal_lm(folder, dtype=torch.float32).eval(), temperature=1.0)
    return score_sequences(policy, [PROBE], token_budget=10**6)[0]


def scored(fleet: Fleet) -> list[list[float]]:
    """The probe's log-probs from every engine."""
    return gather([worker.submit("score", [PROBE]) for worker in fleet.workers], 120.0)  # type: ignore[return-value]


def versions(fleet: Fleet) -> list[int]:
    options: dict[str, Any] = {"temperature": 1.0, "max_new_tokens": 1, "stop_ids": [1]}
    return [answer[0] for answer in gather([w.submit("generate", [], **options) for w in fleet.workers], 120.0)]


def die(cluster: Cluster, fleet: Fleet, index: int) -> None:
    dying = fleet.workers[index]
    cluster.stop(dying)
    with pytest.raises(ClusterError, match="died"):  # Ray's kill is a wish: it may answer for a moment
        while True:
            dying.submit("score", []).result(60.0)
    cluster.workers.append(dying)  # nobody took it off the list


def test_sharded_weights_reach_every_engine(fleet: Fleet, publication: Publication, folders: dict[str, Path]) -> None:
    """``publish`` compares engine and learner itself; here both are compared with the model's own forward pass."""
    old = known(folders["teacher"])
    for found in scored(fleet):
        assert found[0] == pytest.approx(old, abs=2e-5)
    publication.publish(fleet, 1)
    new = known(folders["other-teacher"])
    assert max(abs(a - b) for a, b in zip(old, new, strict=True)) > 0.1
    for found in scored(fleet):
        assert found[0] == pytest.approx(new, abs=2e-5)
    assert versions(fleet) == [1, 1]


def test_other_weights_than_were_sent_are_refused(fleet: Fleet) -> None:
    """The engines hold what the test above sent; its checksum is not 1."""
    with pytest.raises(RolloutError, match="RolloutWorker-transfer-1: weights of version 7 arrived with checksum"):
        fleet.workers[1].submit("load_weights", Sent(1), version=7, probe=None).result(120.0)


def test_the_object_store_carries_the_same_weights(publication: Publication, folders: dict[str, Path]) -> None:
    named = dict(publication.learners.call("export_weights")[0])
    held = load_causal_lm(folders["other-teacher"], dtype=torch.float32).state_dict()
    assert named.keys() == held.keys() - {"lm_head.weight"}
    assert all(torch.equal(named[name], held[name]) for name in named)


def test_a_replaced_engine_gets_the_weights_and_joins_again(
    cluster: Cluster, fleet: Fleet, publication: Publication, folders: dict[str, Path]
) -> None:
    publication.publish(fleet, 2)
    die(cluster, fleet, 0)
    first, second = (fleet.map("score", [PROBE, PROBE]) for _ in range(2))  # as many as asynchronous runs have
    answers = [*first.results(), *second.results()]
    assert fleet.replaced == 1
    for found in answers:
        assert found[0] == pytest.approx(known(folders["other-teacher"]), abs=2e-5)
    publication.publish(fleet, 3)
    assert publication.joined == 1
    assert versions(fleet) == [3, 3]


def test_an_engine_that_died_idle_is_replaced_before_it_is_sent_weights(
    cluster: Cluster,
    fleet: Fleet,
    publication: Publication,
    folders: dict[str, Path],
    capsys: pytest.CaptureFixture[str],
) -> None:
    """In synchronous runs engines have nothing to do while the learner learns. What the dead one said is kept."""
    log, before = fleet.workers[1].log_file, fleet.replaced
    logs = len(list(log.parent.glob("RolloutWorker-transfer-1*.log")))
    die(cluster, fleet, 1)
    publication.publish(fleet, 4)
    assert fleet.replaced == before + 1
    assert versions(fleet) == [4, 4]
    assert "replacing a worker: RolloutWorker-transfer-1 died in `score`" in capsys.readouterr().out
    assert len(list(log.parent.glob("RolloutWorker-transfer-1*.log"))) == logs + 1
    for found in scored(fleet):
        assert found[0] == pytest.approx(known(folders["other-teacher"]), abs=2e-5)


def test_an_engine_that_dies_under_way_is_named(
    cluster: Cluster, fleet: Fleet, publication: Publication, learners: Sequence[Worker]
) -> None:
    die(cluster, fleet, 1)
    with pytest.raises(ClusterError, match="LearnerWorker-transfer-0: RolloutWorker-transfer-1 died"):
        publication._send(fleet, 5)
    del learners


def test_every_device_of_every_engine_has_a_rank_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two engines over two devices each, beside the sender's rank 0; vLLM adds a device's number within its engine."""
    from rlkd.learner import sending
    from rlkd.learner.weights import Route

    told: list[dict[str, Any]] = []
    engine = SimpleNamespace(submit=lambda _, call, request: told.append({"call": call, **request["init_info"]}))
    monkeypatch.setattr(sending, "gather", lambda *_: None)
    route = Route("nccl", [engine, engine], devices=2, address=("here", 1), deadline_s=1.0)  # type: ignore[list-item]
    sending._Engines(route).init_weight_transfer_engine({"rank_offset": 1, "packed": True})
    assert [(one["call"], one["rank_offset"]) for one in told] == [
        ("init_weight_transfer_engine", 1),
        ("init_weight_transfer_engine", 3),
    ]
    assert sending._init_info(route, 0, 2**30).world_size == 5


def test_the_buffer_holds_the_largest_weight(monkeypatch: pytest.MonkeyPatch) -> None:
    """CUDA IPC refuses a weight that exceeds it, and embeddings often do."""
    from rlkd.learner import sending

    weights = [("small", torch.zeros(3)), ("embedding", torch.zeros(100, 7).bfloat16())]
    monkeypatch.setattr(sending, "BUFFER_BYTES", 64)
    assert sending._Published(lambda: iter(weights)).buffer_bytes() == 100 * 7 * 2
    assert sending._Published(lambda: iter(weights[:1])).buffer_bytes() == 64
