"""Every reported case as expected, wherever the caller runs."""

from __future__ import annotations

import asyncio
import resource
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from case_files import ROUTED, item, misjudged, own_cases

from reward.pool import VerifierPool
from reward.verdict import Verdict

TIME_LIMIT_S = 8.0


def test_reported_cases_in_the_main_thread(reported: list[dict[str, Any]]) -> None:
    """Firm ones, and the policy ones by the default (lenient) policy; none over time, memory or into an error."""
    with VerifierPool(ROUTED, workers=2, time_limit_s=TIME_LIMIT_S, memory_limit_mb=1024) as pool:
        verdicts = pool.verify_batch([item(case) for case in reported])
        slowest, replaced = pool.stats.slowest_s, pool.stats.replaced
    assert misjudged(reported, verdicts) == []
    assert [case["id"] for case, verdict in zip(reported, verdicts, strict=True) if verdict.reason == "error"] == []
    assert slowest < TIME_LIMIT_S
    assert replaced == 0
    peak_mb = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024  # of the largest process that was reaped
    assert peak_mb < 2048


def test_invalid_golds_abstain_with_a_reason(reported: list[dict[str, Any]]) -> None:
    cases = [case for case in reported if case["kind"] == "invalid_gold" and not case["expected"]]
    with VerifierPool("math", workers=1) as pool:
        verdicts = pool.verify_batch([item(case) for case in cases])
    unusable = {case["id"]: verdict for case, verdict in zip(cases, verdicts, strict=True) if verdict.abstained}
    assert {"gold-01", "gold-03", "gold-08", "gold-09", "gold-10", "gold-11"} <= unusable.keys()
    assert {verdict.reason for verdict in unusable.values()} == {"bad_gold"}


def quick(reported: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """All but code (a process each), which test_code covers, so that every place to run can be tried in seconds."""
    return [case for case in reported if case["kind"] != "code_exec"]


def test_reported_cases_in_worker_threads(reported: list[dict[str, Any]]) -> None:
    """Several threads share one pool; each gets its own verdicts in its own order."""
    cases = quick(reported)
    with VerifierPool(ROUTED, workers=2) as pool, ThreadPoolExecutor(4) as threads:
        batches = [threads.submit(pool.verify_batch, [item(case) for case in cases[at::4]]) for at in range(4)]
        for at, batch in enumerate(batches):
            assert misjudged(cases[at::4], batch.result()) == []


def test_pool_made_in_a_thread_outlives_it(reported: list[dict[str, Any]]) -> None:
    """The kernel's death signal follows the starting thread: it must be one of the pool's own."""
    made: list[VerifierPool] = []
    maker = threading.Thread(target=lambda: made.append(VerifierPool("math", workers=1)))
    maker.start()
    maker.join()
    cases = [case for case in quick(reported) if case["kind"] == "runtime"]
    with made[0] as pool:
        assert misjudged(cases, pool.verify_batch([item(case) for case in cases])) == []
        assert pool.stats.replaced == 0


def test_reported_cases_in_an_event_loop(reported: list[dict[str, Any]]) -> None:
    """The loop stays alive meanwhile: a ticker runs beside the batch."""
    cases = quick(reported)

    async def judge() -> tuple[list[Verdict], int]:
        ticks = 0

        async def tick() -> None:
            nonlocal ticks
            while True:
                await asyncio.sleep(0.005)
                ticks += 1

        with VerifierPool(ROUTED, workers=2) as pool:
            ticker = asyncio.create_task(tick())
            verdicts = await pool.averify_batch([item(case) for case in cases])
            ticker.cancel()
        return verdicts, ticks

    verdicts, ticks = asyncio.run(judge())
    assert misjudged(cases, verdicts) == []
    assert ticks > 2


@pytest.mark.engine
def test_reported_cases_inside_ray(reported: list[dict[str, Any]]) -> None:
    """Ray task, plain actor, threaded actor, async actor."""
    import ray

    cases = quick(reported)
    items = [item(case) for case in cases]

    def judge(batch: list[tuple[Any, dict[str, Any]]]) -> list[Verdict]:
        with VerifierPool(ROUTED, workers=1) as pool:
            return pool.verify_batch(batch)

    class Plain:
        def judge(self, batch: list[tuple[Any, dict[str, Any]]]) -> list[Verdict]:
            return judge(batch)

    class Async:
        async def judge(self, batch: list[tuple[Any, dict[str, Any]]]) -> list[Verdict]:
            with VerifierPool(ROUTED, workers=1) as pool:
                return await pool.averify_batch(batch)

    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False, configure_logging=False)
    try:
        task = ray.remote(num_cpus=0.1)(judge)
        plain = ray.remote(num_cpus=0.1)(Plain)
        calls = {
            "task": task.remote(items),
            "actor": plain.remote().judge.remote(items),
            "threaded": plain.options(max_concurrency=2).remote().judge.remote(items),
            "async": ray.remote(num_cpus=0.1)(Async).remote().judge.remote(items),
        }
        for where, call in calls.items():
            assert (where, misjudged(cases, ray.get(call, timeout=300))) == (where, [])
    finally:
        ray.shutdown()


@pytest.mark.parametrize("name", ["math", "multiple_choice"])
def test_own_cases(name: str) -> None:
    """Siblings of the reported kinds: accepted, rejected, cheating."""
    cases = own_cases(name)
    with VerifierPool(name, workers=2) as pool:
        verdicts = pool.verify_batch([item(case) for case in cases])
        assert pool.stats.slowest_s < 5
    assert misjudged(cases, verdicts) == []
    assert {case["expected"] for case in cases} == {True, False}
