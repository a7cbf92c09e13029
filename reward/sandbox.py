"""Running an untrusted Python program: namespaces, limits, and a parent that decides when it is over."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import secrets
import select
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from reward.process_tree import usage
from rlkd.errors import VerifierError

MAX_OUTPUT = 1_000_000  # bytes of stdout; a program that writes more is stopped
MAX_ERRORS = 64_000  # bytes of stderr kept, from its end
KILL_LIMIT_S = 2.0
WATCH_S = 0.05  # between two looks at the memory of all its processes
_LAUNCHER = Path(__file__).with_name("sandbox_launcher.py")
_PYTHON = os.path.realpath(sys.executable)
_UIDS = itertools.count(secrets.randbelow(40_000))


@dataclass(frozen=True, slots=True)
class Limits:
    """Of one program: seconds, megabytes (each process, and all together twice that), processes.

    Seconds are wall-clock, less what the program waited for a core: a busy machine is not the program's fault.
    """

    time_limit_s: float = 4.0
    memory_limit_mb: int = 384
    processes: int = 12


@dataclass(frozen=True, slots=True)
class Outcome:
    """status: ok (exit code 0), exit, signal, timeout, memory, output; no fault of the program: failed, starved.

    ``seconds`` count as the limit does.
    """

    status: str
    stdout: bytes
    detail: str = ""
    seconds: float = 0.0


def visible_paths() -> list[str]:
    """What the program can read: system libraries and the Python that runs this, without site-packages of a venv."""
    prefix = os.path.realpath(sys.base_prefix)
    system = ["/usr", "/lib", "/lib64", "/lib32", "/bin", "/etc/ld.so.cache", "/dev/null", "/dev/zero", "/dev/urandom"]
    return [path for path in system if os.path.lexists(path)] + ([] if prefix.startswith("/usr") else [prefix])


def _mountpoint() -> str:
    for path in ("/mnt", "/media", "/srv", "/tmp"):
        if Path(path).is_dir() and not os.path.realpath(sys.base_prefix).startswith(path + "/"):
            return path
    raise VerifierError("code sandbox: none of /mnt, /media, /srv, /tmp exists to mount on")


def run(program: str, *, stdin: str = "", limits: Limits = Limits()) -> Outcome:
    """Run a program to its end or its limits. Everything it started is dead when this returns."""
    key = secrets.token_hex(16)
    config = {
        "program": program,
        "stdin": stdin,
        "key": key,
        "parent": os.getpid(),
        "python": _PYTHON,
        "visible": visible_paths(),
        "mountpoint": _mountpoint(),
        "uid": 2_000_000 + next(_UIDS) % 50_000 + 50_000 * (os.getpid() % 100),
        "time_limit_s": limits.time_limit_s,
        "memory_limit_mb": limits.memory_limit_mb,
        "processes": limits.processes,
    }
    process = subprocess.Popen(
        [_PYTHON, "-I", "-S", "-B", str(_LAUNCHER)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
        env={"PATH": "/usr/bin:/bin"},
    )
    watch, started = _Watch(process, limits), time.monotonic()
    try:
        watch.feed(json.dumps(config).encode())
        status = watch.until_over()
    finally:
        _kill(process)
    seconds = time.monotonic() - started - watch.waited_s
    return replace(_outcome(status, bytes(watch.stdout), bytes(watch.stderr), key), seconds=seconds)


def _outcome(status: str, stdout: bytes, stderr: bytes, key: str) -> Outcome:
    if status != "ended":
        return Outcome(status, stdout)
    report = _report(stderr, key)
    text = stderr.decode("utf-8", "replace")
    if "failed" in report:
        return Outcome("failed", b"", str(report["failed"]))
    if "signal" in report:
        name = signal.Signals(report["signal"]).name if report["signal"] in signal.valid_signals() else "?"
        return Outcome("timeout" if name == "SIGXCPU" else "signal", stdout, name)
    if report.get("exit") == 0:
        return Outcome("ok", stdout)
    if not report:
        return Outcome("failed", b"", "the sandbox ended without a report")
    memory = "MemoryError" in text[-4000:]
    return Outcome("memory" if memory else "exit", stdout, text.rpartition("\n{")[0][-300:].strip())


def _report(stderr: bytes, key: str) -> dict[str, Any]:
    """The line that init wrote: the one with the key, which the program never saw."""
    for line in reversed(stderr.decode("utf-8", "replace").splitlines()):
        if key in line:
            with contextlib.suppress(ValueError):
                return dict(json.loads(line))
    return {}


def _kill(process: subprocess.Popen[bytes]) -> None:
    """Asked to end, the launcher kills init and waits until its pid namespace is empty; then it ends itself."""
    process.terminate()
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(KILL_LIMIT_S)
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)  # init shares the group; its death takes the namespace along
    process.wait()
    for stream in (process.stdin, process.stdout, process.stderr):
        if stream is not None:
            with contextlib.suppress(OSError):
                stream.close()


class _Watch:
    """Reads a program's output and looks at its clock and memory."""

    def __init__(self, process: subprocess.Popen[bytes], limits: Limits) -> None:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stderr is not None
        self._process, self._limits, self._stdin = process, limits, process.stdin
        self.stdout, self.stderr = bytearray(), bytearray()
        self.waited_s = 0.0  # for a core
        self._streams = {process.stdout.fileno(): self.stdout, process.stderr.fileno(): self.stderr}

    def feed(self, config: bytes) -> None:
        with contextlib.suppress(BrokenPipeError):
            self._stdin.write(config)
            self._stdin.close()

    def until_over(self) -> str:
        """ended, or the limit that was met: timeout, memory, output; or starved."""
        started = looked = time.monotonic()
        poller = select.poll()
        for stream in self._streams:
            poller.register(stream, select.POLLIN | select.POLLHUP)
        while self._streams:
            for stream, _ in poller.poll(WATCH_S * 1000):
                if not self._read(stream):
                    poller.unregister(stream)
            if len(self.stdout) > MAX_OUTPUT:
                return "output"
            if time.monotonic() - looked > WATCH_S:
                looked = time.monotonic()
                if over := self._is_over(looked - started):
                    return over
        return "ended"

    def _is_over(self, seconds: float) -> str:
        """After so many seconds on the clock: memory, timeout, starved, or nothing yet."""
        limit, used = self._limits.time_limit_s, usage(self._process.pid)
        if used.memory_mb > 2 * self._limits.memory_limit_mb:
            return "memory"
        self.waited_s = max(self.waited_s, used.waited_s)  # of what has ended nothing can be read any more
        if seconds >= limit and (used.worked_s >= limit or seconds - self.waited_s >= limit):
            return "timeout"
        return "starved" if seconds >= 2 * limit else ""

    def _read(self, stream: int) -> bool:
        chunk = os.read(stream, 1 << 16)
        target = self._streams[stream]
        target += chunk
        if target is self.stderr and len(target) > 2 * MAX_ERRORS:
            del target[:-MAX_ERRORS]
        if not chunk:
            del self._streams[stream]
        return bool(chunk)
