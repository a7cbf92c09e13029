"""One worker process, seen from the parent: start, send, receive within a deadline, kill with everything it started."""

from __future__ import annotations

import contextlib
import json
import os
import pickle
import select
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from reward.process_tree import tree
from reward.registry import Spec
from reward.worker import HEADER
from rlkd.errors import VerifierError

START_LIMIT_S = 60.0  # imports on a busy machine; not part of any answer's limit


class ChildTimeoutError(Exception):
    """No frame arrived within the deadline."""


class ChildDiedError(Exception):
    """The worker is gone."""


class Child:
    """A ``python -m reward.worker`` in its own session. Not thread-safe: one owner at a time."""

    def __init__(self, spec: Spec, memory_limit_mb: int) -> None:
        path = os.pathsep.join(entry or str(Path.cwd()) for entry in sys.path)
        self._process = subprocess.Popen(
            [sys.executable, "-m", "reward.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,
            env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
        )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._source, self._sink = self._process.stdout.fileno(), self._process.stdin
        self._buffer = bytearray()
        self._ready = False
        self.reads: frozenset[str] = frozenset()
        self._send({"spec": spec, "parent": os.getpid(), "memory_limit_mb": memory_limit_mb})

    @property
    def pid(self) -> int:
        return self._process.pid

    def await_ready(self) -> None:
        """Wait until the verifier is built in there. Raises: VerifierError when it cannot be."""
        if self._ready:
            return
        try:
            answer = self.receive(START_LIMIT_S)
        except (ChildTimeoutError, ChildDiedError) as error:
            raise VerifierError(f"verifier worker did not start: {type(error).__name__} {error}") from error
        if "failed" in answer:
            raise VerifierError(answer["failed"].removeprefix("VerifierError: "))
        self.reads, self._ready = frozenset(answer["reads"]), True

    def send_jobs(self, jobs: list[tuple[int, str, Any, Any]]) -> None:
        self._send(jobs)

    def answers(self) -> bool:
        """Whether it still works. One that is being killed may look alive for a moment, but answers nothing more."""
        try:
            self.send_jobs([])
            self.receive(START_LIMIT_S)
        except (ChildTimeoutError, ChildDiedError):
            return False
        return True

    def receive(self, limit_s: float) -> dict[str, Any]:
        """The next frame. Raises: ChildTimeoutError, ChildDiedError."""
        deadline = time.monotonic() + limit_s
        while True:
            frame = self._take_frame()
            if frame is not None:
                try:
                    return dict(json.loads(frame))
                except (TypeError, ValueError):
                    raise ChildDiedError("something else wrote into its pipe") from None
            left = deadline - time.monotonic()
            poller = select.poll()  # select() itself fails above file descriptor 1023
            poller.register(self._source, select.POLLIN | select.POLLHUP)
            if left <= 0 or not poller.poll(left * 1000):
                raise ChildTimeoutError(f"no verdict within {limit_s:g} s")
            chunk = os.read(self._source, 1 << 16)
            if not chunk:
                raise ChildDiedError(f"exit status {self._process.wait()}")
            self._buffer += chunk

    def cpu_s(self) -> float:
        """Processor seconds of the worker so far (its waited-for children included); 0 when it is gone."""
        try:
            with open(f"/proc/{self.pid}/stat", "rb") as stream:  # noqa: PTH123 - hot path of a timeout
                fields = stream.read().rpartition(b")")[2].split()
        except OSError:
            return 0.0
        return sum(int(ticks) for ticks in fields[11:15]) / os.sysconf("SC_CLK_TCK")

    def kill(self) -> None:
        """SIGKILL to all below it and to the whole group, then reap: no zombie, no orphan."""
        for pid, _ in list(tree(self.pid)):  # the worker adopts what is abandoned
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, signal.SIGKILL)
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                with contextlib.suppress(OSError):
                    stream.close()

    def _send(self, message: Any) -> None:
        payload = pickle.dumps(message, protocol=pickle.HIGHEST_PROTOCOL)
        try:
            self._sink.write(HEADER.pack(len(payload)) + payload)
            self._sink.flush()
        except OSError as error:
            raise ChildDiedError(str(error)) from error

    def _take_frame(self) -> bytes | None:
        if len(self._buffer) < HEADER.size:
            return None
        (size,) = HEADER.unpack_from(self._buffer)
        end = HEADER.size + size
        if len(self._buffer) < end:
            return None
        frame = bytes(self._buffer[HEADER.size : end])
        del self._buffer[:end]
        return frame
