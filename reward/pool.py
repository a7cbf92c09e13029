"""A supervised pool of verifier processes: hard limits per answer, from any thread, event loop or Ray actor."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import queue
import secrets
import threading
import time
from collections import deque
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self

from reward.child import Child, ChildDiedError, ChildTimeoutError
from reward.protocol import ROLLOUT_FIELDS, Example
from reward.registry import Spec
from reward.stats import PoolStats
from reward.verdict import Verdict
from rlkd.errors import VerifierError

log = logging.getLogger("reward")

MAX_CHUNK = 32  # answers per round trip; each still has its own clock
MAX_CHUNK_CHARS = 4_000_000  # of all completions in it: a worker holds them at once
STARVED = 0.5  # below this share of CPU time a timeout is the machine's fault, not the answer's


@dataclass
class _Job:
    kind: str
    completion: Any
    example: Mapping[str, Any]
    counted: bool
    future: Future[Verdict] = field(default_factory=Future)
    deaths: int = 0


class VerifierPool:
    """Judges completions in killable processes.

    Every answer has ``time_limit_s`` of wall-clock time, counted from when its worker takes it up (never while it
    queues), and ``memory_limit_mb`` of address space. A worker over its time is killed with its process group and
    replaced by a warm spare. An answer that burnt its time scores 0 with reason ``timeout``; one whose worker
    was starved of CPU, or died twice, is an abstention.

    >>> with VerifierPool("exact", workers=1) as pool:
    ...     [verdict.score for verdict in pool.verify_batch([("yes", {"answer": "Yes"}), ("no", {"answer": "Yes"})])]
    [1.0, 0.0]
    """

    def __init__(
        self,
        spec: Spec,
        *,
        workers: int = 2,
        time_limit_s: float = 8.0,
        memory_limit_mb: int = 1024,
        alarm_after: int = 256,
    ) -> None:
        if workers < 1 or time_limit_s <= 0 or memory_limit_mb < 128:
            raise VerifierError(
                f"pool: workers={workers}, time_limit_s={time_limit_s}, memory_limit_mb={memory_limit_mb}; "
                "accepted: workers >= 1, time_limit_s > 0, memory_limit_mb >= 128"
            )
        self.spec, self.time_limit_s, self.memory_limit_mb = spec, time_limit_s, memory_limit_mb
        self.stats = PoolStats(alarm_after=alarm_after)
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._workers = workers
        self._spare: Child | None = None
        self._spare_lock = threading.Lock()
        self._closed = False
        self.reads = ROLLOUT_FIELDS  # those that the verifier reads, known once it is built
        started: Future[None] = Future()
        # Children are started by the threads that use them: the kernel's death signal follows the starting thread.
        self._threads = [
            threading.Thread(target=self._serve, args=(started,), name=f"verifier-{index}", daemon=True)
            for index in range(workers)
        ]
        for thread in self._threads:
            thread.start()
        try:
            started.result()  # a wrong spec fails here, in the caller's face
        except VerifierError:
            self.close()
            raise

    # -- for callers

    def verify_batch(self, items: Sequence[tuple[Any, Example]], *, counted: bool = True) -> list[Verdict]:
        """Judge (completion, example) pairs; one verdict for each, in order. Blocks; call it from any thread.

        Not ``counted``: the pool's statistics don't see them, nor its alarm at a verifier that refuses everything.
        """
        return [job.result() for job in self._submit("completion", items, counted=counted)]

    def check_golds(self, examples: Sequence[Example]) -> list[Verdict]:
        """Ask of each row whether its gold can be used; anything but ``right`` should be dropped and counted."""
        return [job.result() for job in self._submit("gold", [("", example) for example in examples])]

    async def averify_batch(self, items: Sequence[tuple[Any, Example]]) -> list[Verdict]:
        """As verify_batch, without blocking the event loop."""
        return list(await asyncio.gather(*(asyncio.wrap_future(job) for job in self._submit("completion", items))))

    def close(self) -> None:
        """Stop and reap every worker. Answers not yet taken up are abstained."""
        if self._closed:
            return
        self._closed = True
        for _ in self._threads:
            self._jobs.put(None)
        for thread in self._threads:
            thread.join()
        with self._spare_lock:
            if self._spare is not None:
                self._spare.kill()
        while True:
            try:
                job = self._jobs.get_nowait()
            except queue.Empty:
                return
            if job is not None:
                job.future.set_result(Verdict.abstain("error", "the pool was closed"))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # -- threads, one for each worker

    def _submit(
        self, kind: str, items: Sequence[tuple[Any, Example]], *, counted: bool = True
    ) -> list[Future[Verdict]]:
        if self._closed:
            raise VerifierError("the verifier pool is closed")
        jobs = [_Job(kind, completion, example, counted and kind == "completion") for completion, example in items]
        for job in jobs:
            self._jobs.put(job)
        return [job.future for job in jobs]

    def _serve(self, started: Future[None]) -> None:
        child = self._first_child(started)
        try:
            while (job := self._jobs.get()) is not None:
                pending = deque([job, *self._more(job)])
                while pending:
                    try:
                        if child is None:
                            child = self._take_child()
                        self._run(child, pending)
                    except (ChildTimeoutError, ChildDiedError):
                        if child is not None:
                            child.kill()
                        child = None
                        self.stats.count_replacement()
                    except Exception as error:  # whatever it is, callers must not wait for ever
                        log.exception("verifier pool")
                        self._finish(
                            pending.popleft(), Verdict.abstain("error", f"{type(error).__name__}: {error}"), 0.0
                        )
        finally:
            if child is not None:
                child.kill()

    def _first_child(self, started: Future[None]) -> Child | None:
        """The child of a thread's start; what the first one meets is what the constructor raises."""
        child, error = None, None
        try:
            child = self._take_child()
            self.reads = child.reads
        except Exception as fault:
            error = VerifierError(str(fault))
        with self._spare_lock:
            if not started.done():
                started.set_exception(error) if error else started.set_result(None)
        return child

    def _more(self, first: _Job) -> list[_Job]:
        """A fair share of what is queued, so that one round trip serves several answers."""
        jobs: list[_Job] = []
        share = min(MAX_CHUNK, self._jobs.qsize() // self._workers)
        size = len(first.completion) if isinstance(first.completion, str) else 0
        while len(jobs) < share and size < MAX_CHUNK_CHARS:
            try:
                job = self._jobs.get_nowait()
            except queue.Empty:
                break
            if job is None:  # the stop sign of a sibling
                self._jobs.put(None)
                break
            size += len(job.completion) if isinstance(job.completion, str) else 0
            jobs.append(job)
        return jobs

    def _take_child(self) -> Child:
        """The warm spare if it lives, else a new worker; and a new spare in its place."""
        with self._spare_lock:
            child, self._spare = self._spare, None
        ready = child if child is not None and _is_ready(child) else None
        if ready is None:
            ready = Child(self.spec, self.memory_limit_mb)
        with self._spare_lock:
            if self._spare is None and not self._closed:
                self._spare = Child(self.spec, self.memory_limit_mb)
        try:
            ready.await_ready()
        except VerifierError:
            ready.kill()
            raise
        return ready

    def _run(self, child: Child, pending: deque[_Job]) -> None:
        """Judge all of ``pending`` in one round trip; on a fault the head is settled and the rest stays."""
        first = secrets.randbits(62)  # a verdict with another token than its answer's is none of this worker's
        tokens = deque(range(first, first + len(pending)))
        batch = zip(tokens, pending, strict=True)
        child.send_jobs([(token, job.kind, job.completion, job.example) for token, job in batch])
        while pending:
            job, started, cpu = pending[0], time.monotonic(), child.cpu_s()
            try:
                answer = child.receive(self.time_limit_s)
                if answer.get("token") != tokens.popleft():
                    raise ChildDiedError("something else wrote into its pipe")
            except ChildTimeoutError:
                pending.popleft()
                self._finish(job, self._timed_out(child.cpu_s() - cpu, job), time.monotonic() - started)
                raise
            except ChildDiedError as error:
                job.deaths += 1
                if job.deaths > 1:
                    pending.popleft()
                    self._finish(job, Verdict.abstain("error", f"the worker died twice: {error}"), 0.0)
                raise
            pending.popleft()
            self._finish(job, Verdict.from_json(answer["verdict"]), time.monotonic() - started)
            if answer["spoiled"]:  # its heap cannot be trusted any more
                raise ChildDiedError("memory limit")

    def _timed_out(self, cpu_s: float, job: _Job) -> Verdict:
        text = f"no verdict within {self.time_limit_s:g} s ({cpu_s:.1f} s of CPU)"
        if job.kind == "gold" or cpu_s < STARVED * self.time_limit_s:
            return Verdict.abstain("timeout", text)
        return Verdict.wrong(reason="timeout", detail=text)

    def _finish(self, job: _Job, verdict: Verdict, seconds: float) -> None:
        if job.counted:
            alarm = self.stats.count(verdict, seconds)
            if alarm:
                log.warning("verifier %s: %s", self.spec, alarm)
        with contextlib.suppress(Exception):  # the caller may have cancelled it
            job.future.set_result(verdict)


def _is_ready(child: Child) -> bool:
    """Whether a spare came up and still works; one that does not is put away."""
    with contextlib.suppress(VerifierError):
        child.await_ready()
        if child.answers():
            return True
    child.kill()
    return False
