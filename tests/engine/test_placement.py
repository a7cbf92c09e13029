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


@pytest.mark.parametrize(("kinds", "part"), [(("engine", "learner"), 0.5), (("engine", "teacher", "learner"), 0.3333)])
def test_those_who_take_turns_share_a_gpu(
    kinds: tuple[str, ...], part: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ray, "init", partial(ray.init, num_gpus=2))
    with Cluster(tmp_path, start_deadline_s=60.0) as cluster:
        places = cluster.pairs(2)
        assert places is not None
        for index in range(2):
            sharing = [cluster.spawn(f"{kind}-{index}", gpus=part, bundle=places[index]) for kind in kinds]
            assert {gpu_of(cluster, worker) for worker in sharing} == {str(index)}
        cluster.start_deadline_s = 1.0
        with pytest.raises(ClusterError, match="1 GPUs for pairs of learner and engine were not free within 1 s"):
            cluster.pairs(1)
