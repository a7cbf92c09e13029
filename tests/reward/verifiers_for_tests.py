"""Verifiers that misbehave on purpose, loaded by ``module:function`` in the pool's tests."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from reward.verdict import Verdict


class _Scalar:
    """What numpy and torch give back: no float, but an item() of no dimension."""

    ndim = 0

    def item(self) -> float:
        return 0.5


def _daemon(pids: Path) -> None:
    """A process in a session of its own, whose parent is gone."""
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            pids.write_text(str(os.getpid()))
            os.closerange(0, 256)
            time.sleep(1000)
        os._exit(0)


def _write_into_every_pipe(payload: bytes) -> None:
    for descriptor in range(3, 32):
        with contextlib.suppress(OSError):
            os.write(descriptor, len(payload).to_bytes(4, "big") + payload)


def by_command(completion: str, example: dict[str, Any]) -> Any:
    """Does what the completion says."""
    command, _, argument = completion.partition(" ")
    if command == "sleep":
        time.sleep(float(argument))
    elif command == "spin":
        end = time.monotonic() + float(argument)
        while time.monotonic() < end:
            pass
    elif command == "bigint":
        return 9 ** (9**9) > 0  # one operation in C that never lets go of the interpreter
    elif command == "alloc":
        return len(bytearray(int(argument) * 2**20)) > 0
    elif command == "die":
        os._exit(3)
    elif command == "raise":
        raise ValueError(argument)
    elif command == "child":
        child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(1000)"])
        example["pids"].write_text(str(child.pid))
        time.sleep(1000)
    elif command == "daemon":
        _daemon(example["pids"])
        time.sleep(1000)
    elif command == "leave":
        raise {"exit": SystemExit, "interrupt": KeyboardInterrupt}[argument]
    elif command == "write":
        _write_into_every_pipe(argument.encode())
    elif command == "input":
        return input() == "x"
    elif command == "unspeakable":
        return Verdict.right(parsed=object())  # type: ignore[arg-type]
    elif command == "close":
        os.closerange(0, 256)
    elif command == "print":
        print(argument)
    elif command == "pid":
        return Verdict.right(str(os.getpid()))
    elif command == "return":
        returned = {"none": None, "nan": float("nan"), "1.5": 1.5, "true": True, "0.25": 0.25, "text": "yes"}
        return _Scalar() if argument == "array" else returned[argument]
    return completion == example.get("answer", completion)


def always(completion: str, example: dict[str, Any]) -> bool:  # noqa: ARG001
    return True


def never(completion: str, example: dict[str, Any]) -> bool:  # noqa: ARG001
    return False


class Heavy:
    """Its process takes a moment to die: the kernel frees the memory first."""

    name = "heavy"

    def __init__(self) -> None:
        self.ballast = b"x" * 2**28

    def verify(self, completion: str, example: Mapping[str, Any]) -> Verdict:  # noqa: ARG002
        return Verdict.right()

    def check_gold(self, example: Mapping[str, Any]) -> Verdict:  # noqa: ARG002
        return Verdict.right()


READY = "not a verifier"
