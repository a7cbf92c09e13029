"""What holds for every test module."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest


def shared_memory() -> set[str]:
    """Names in /dev/shm that outlive the process that made them."""
    return {path.name for pattern in ("deepspeed_*", "plasma*") for path in Path("/dev/shm").glob(pattern)}


@pytest.fixture(scope="module", autouse=True)
def nothing_left_behind() -> Iterator[None]:
    """No Ray connection (a process has one: the next module could not start its own) and no shared memory."""
    before = shared_memory()
    yield
    ray = sys.modules.get("ray")
    assert ray is None or not ray.is_initialized(), "this module left a Ray cluster running in the test process"
    until = time.monotonic() + 10  # a process that was just killed needs a moment
    while shared_memory() - before and time.monotonic() < until:
        time.sleep(0.1)
    assert shared_memory() <= before
