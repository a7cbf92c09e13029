"""Verifiers that misbehave on purpose, loaded by ``module:function`` in the pool's tests."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from typing import Any

from reward.verdict import Verdict


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
    elif command == "print":
        print(argument)
    elif command == "pid":
        return Verdict.right(str(os.getpid()))
    elif command == "return":
        return {"none": None, "nan": float("nan"), "1.5": 1.5, "true": True, "0.25": 0.25, "text": "yes"}[argument]
    return completion == example.get("answer", completion)


def always(completion: str, example: dict[str, Any]) -> bool:  # noqa: ARG001
    return True


def never(completion: str, example: dict[str, Any]) -> bool:  # noqa: ARG001
    return False


READY = "not a verifier"
