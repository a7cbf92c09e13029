"""The rollout engine's contract, on vLLM itself."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from rlkd.cluster import Cluster, Worker
from rlkd.errors import ClusterError, RolloutError
from rlkd.learner.packing import score_sequences
from rlkd.learner.policy import PackedPolicy, load_causal_lm
from rlkd.learner.weights import checksum
from rlkd.rollout.vllm_engine import EngineSettings, Request

pytestmark = pytest.mark.engine

PROMPTS = [(3, 10, 11, 12, 4), (3, 20, 21, 4), tuple(range(30, 60))]
STOP = [1]


def settings(folder: Path) -> EngineSettings:
    return EngineSettings(str(folder), "float32", max_model_len=96, max_concurrent=64, on_gpu=False)


@pytest.fixture(scope="module")
def worker(cluster: Cluster, folders: dict[str, Path]) -> Iterator[Worker]:
    started = cluster.spawn("RolloutWorker-test")
    cluster.build(started, "rlkd.rollout.worker:RolloutWorker", settings(folders["policy"])).result(300.0)
    yield started
    cluster.stop(started)


def call(worker: Worker, method: str, *args: Any, **kwargs: Any) -> Any:
    return worker.submit(method, *args, **kwargs).result(120.0)


def generate(worker: Worker, requests: list[Request], **changes: Any) -> list[Any]:
    options: dict[str, Any] = {"temperature": 1.0, "max_new_tokens": 24, "stop_ids": STOP} | changes
    return list(call(worker, "generate", requests, **options)[1])


def reference(folder: Path, pairs: list[tuple[Any, Any]], temperature: float = 1.0) -> list[list[float]]:
    policy = PackedPolicy(load_causal_lm(folder, dtype=torch.float32).eval(), temperature=temperature)
    return score_sequences(policy, pairs, token_budget=10**6)


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_sampled_logprobs_are_the_learners(worker: Worker, folders: dict[str, Path], temperature: float) -> None:
    """The number, not the request: log-probs come back at the temperature that sampled."""
    groups = generate(worker, [Request(p, 4, 7) for p in PROMPTS], temperature=temperature)
    pairs = [(prompt, s.token_ids) for prompt, group in zip(PROMPTS, groups, strict=True) for s in group]
    known = reference(folders["policy"], pairs, temperature)
    for found, want in zip([s.logprobs for group in groups for s in group], known, strict=True):
        assert found == pytest.approx(want, abs=2e-5)


def test_scores_are_the_learners(worker: Worker, folders: dict[str, Path]) -> None:
    pairs = [(prompt, tuple(range(40, 60))) for prompt in PROMPTS]
    for _ in range(2):  # a second time, with whatever the first one left in caches
        for found, want in zip(call(worker, "score", pairs), reference(folders["policy"], pairs), strict=True):
            assert found == pytest.approx(want, abs=2e-5)


def test_a_seed_means_the_same_tokens_in_any_company(worker: Worker) -> None:
    alone = generate(worker, [Request(PROMPTS[1], 2, 11)])[0]
    crowd = generate(worker, [Request(p, 3, 100 * i) for i, p in enumerate(PROMPTS)] + [Request(PROMPTS[1], 2, 11)])[-1]
    assert [s.token_ids for s in alone] == [s.token_ids for s in crowd]
    other = generate(worker, [Request(PROMPTS[1], 2, 12)])[0]
    assert [s.token_ids for s in alone] != [s.token_ids for s in other]


def test_top_p_samples_within_its_share(worker: Worker, folders: dict[str, Path]) -> None:
    """Every first token is in the smallest set whose share reaches top_p; a free one is not always."""
    model = AutoModelForCausalLM.from_pretrained(folders["policy"], dtype=torch.float32).eval()
    with torch.no_grad():
        shares = model(input_ids=torch.tensor([PROMPTS[0]])).logits[0, -1].softmax(-1).sort(descending=True)
    nucleus = set(shares.indices[: int((shares.values.cumsum(0) < 0.2).sum()) + 1].tolist())
    within = generate(worker, [Request(PROMPTS[0], 64, 5)], max_new_tokens=1, top_p=0.2)[0]
    free = generate(worker, [Request(PROMPTS[0], 64, 5)], max_new_tokens=1)[0]
    assert {sample.token_ids[0] for sample in within} <= nucleus
    assert not {sample.token_ids[0] for sample in free} <= nucleus


def test_truncation_is_marked_and_the_end_token_is_kept(worker: Worker) -> None:
    cut = generate(worker, [Request(PROMPTS[0], 8, 5)], max_new_tokens=3)[0]
    assert {(s.finish_reason, len(s.token_ids)) for s in cut if STOP[0] not in s.token_ids} == {("length", 3)}
    free = generate(worker, [Request(PROMPTS[0], 64, 5)], max_new_tokens=60)[0]
    stopped = [s for s in free if s.finish_reason == "stop"]
    assert stopped, "with 64 random completions some end"
    assert all(s.token_ids[-1] == STOP[0] for s in stopped)


def test_new_weights_replace_all_old_ones(worker: Worker, folders: dict[str, Path]) -> None:
    """Tied head and cached prompts included: both kept old values in other systems."""
    probe = (PROMPTS[2], tuple(range(40, 60)))
    generate(worker, [Request(PROMPTS[2], 2, 3)])  # fills the prefix cache with the old weights' keys and values
    other = load_causal_lm(folders["other"], dtype=torch.float32)
    named = [(name, tensor) for name, tensor in other.state_dict().items() if name != "lm_head.weight"]
    found = call(worker, "load_weights", (named, checksum(named)), version=5, probe=probe)
    assert found == pytest.approx(reference(folders["other"], [probe])[0], abs=2e-5)
    version, groups = call(
        worker, "generate", [Request(PROMPTS[2], 2, 3)], temperature=1.0, max_new_tokens=8, stop_ids=STOP
    )
    pairs = [(PROMPTS[2], s.token_ids) for s in groups[0]]
    assert version == 5
    for sample, want in zip(groups[0], reference(folders["other"], pairs), strict=True):
        assert sample.logprobs == pytest.approx(want, abs=2e-5)
    call(worker, "load_weights", str(folders["policy"]), version=0, probe=None)
    assert call(worker, "score", [probe])[0] == pytest.approx(reference(folders["policy"], [probe])[0], abs=2e-5)


def test_an_engine_of_two_shards_scores_and_takes_weights(cluster: Cluster, folders: dict[str, Path]) -> None:
    """Tensor-parallel workers are processes of their own: whole weights reach them, from a folder and in memory."""
    sharded = cluster.spawn("RolloutWorker-sharded")
    two = replace(settings(folders["policy"]), tensor_parallel=2)
    cluster.build(sharded, "rlkd.rollout.worker:RolloutWorker", two).result(300.0)
    probe = (PROMPTS[2], tuple(range(40, 60)))
    assert call(sharded, "score", [probe])[0] == pytest.approx(reference(folders["policy"], [probe])[0], abs=2e-5)
    other = load_causal_lm(folders["other"], dtype=torch.float32)
    named = [(name, tensor) for name, tensor in other.state_dict().items() if name != "lm_head.weight"]
    found = call(sharded, "load_weights", (named, checksum(named)), version=1, probe=probe)
    assert found == pytest.approx(reference(folders["other"], [probe])[0], abs=2e-5)
    call(sharded, "load_weights", str(folders["policy"]), version=2, probe=None)
    assert call(sharded, "score", [probe])[0] == pytest.approx(reference(folders["policy"], [probe])[0], abs=2e-5)
    cluster.stop(sharded)


def test_damaged_weights_are_refused(worker: Worker, folders: dict[str, Path]) -> None:
    named = list(load_causal_lm(folders["other"], dtype=torch.float32).state_dict().items())
    sent = checksum(named)
    name, tensor = named[0]
    spoiled = [(name, tensor + 1e-3), *named[1:]]
    with pytest.raises(RolloutError, match="RolloutWorker-test: weights of version 9 arrived with checksum"):
        call(worker, "load_weights", (spoiled, sent), version=9, probe=None)


@pytest.fixture(scope="module")
def lost(cluster: Cluster) -> Iterator[Worker]:
    """A process in which no engine comes up."""
    started = cluster.spawn("RolloutWorker-lost")
    yield started
    cluster.stop(started)


def test_a_worker_that_cannot_start_names_itself_and_its_log(cluster: Cluster, lost: Worker, tmp_path: Path) -> None:
    with pytest.raises(ClusterError) as caught:
        cluster.build(lost, "rlkd.rollout.worker:RolloutWorker", settings(tmp_path)).result(120.0)
    assert "RolloutWorker-lost failed in `start RolloutWorker`" in str(caught.value)
    assert "RolloutWorker-lost.log" in str(caught.value)


def test_a_librarys_own_error_arrives_as_its_first_line(
    cluster: Cluster, lost: Worker, folders: dict[str, Path]
) -> None:
    """vLLM's pydantic error cannot be pickled: Ray would report that instead of the fault."""
    wide = replace(settings(folders["policy"]), max_model_len=4096)
    with pytest.raises(ClusterError, match=r"failed in `start RolloutWorker`: ValidationError: .*\n?.*max_model_len"):
        cluster.build(lost, "rlkd.rollout.worker:RolloutWorker", wide).result(120.0)


def test_a_call_that_hangs_names_itself(worker: Worker) -> None:
    busy = worker.submit("generate", [Request(PROMPTS[0], 64, 1)], temperature=1.0, max_new_tokens=60, stop_ids=[])
    with pytest.raises(ClusterError, match="RolloutWorker-test made no progress in `generate` for 0 s"):
        busy.result(0.0)
    busy.result(120.0)
