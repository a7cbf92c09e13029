"""Colocated pairs on pretended GPUs: Ray hands out their numbers without looking at them."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest
import ray

from rlkd.cluster import Cluster, Worker
from rlkd.errors import ClusterError

pytestmark = pytest.mark.engine


def gpu_of(cluster: Cluster, worker: Worker) -> str:
    cluster.build(worker, "os:getenv", "CUDA_VISIBLE_DEVICES").result(60.0)
    return str(worker.submit("strip").result(60.0))


def test_each_learner_shares_its_gpu_with_one_engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray, "init", partial(ray.init, num_gpus=2))
    with Cluster(tmp_path, start_deadline_s=60.0) as cluster:
        places = cluster.pairs(2)
        assert places is not None
        engines = [cluster.spawn(f"engine-{i}", gpus=0.5, bundle=places[i]) for i in range(2)]
        learners = [cluster.spawn(f"learner-{i}", gpus=0.5, bundle=places[i]) for i in range(2)]
        found = [gpu_of(cluster, worker) for worker in engines + learners]
        assert found[:2] == found[2:]
        assert set(found) == {"0", "1"}
        cluster.start_deadline_s = 1.0
        with pytest.raises(ClusterError, match="1 GPUs for pairs of learner and engine were not free within 1 s"):
            cluster.pairs(1)
