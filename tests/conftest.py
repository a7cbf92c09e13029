"""What holds for every test module."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:  # the verifiers' tests load none of it
    from rlkd.recipe import Recipe
    from rlkd.trainer.context import Run


def shared_memory() -> set[str]:
    """Names in /dev/shm that outlive the process that made them."""
    return {path.name for pattern in ("deepspeed_*", "plasma*") for path in Path("/dev/shm").glob(pattern)}


@pytest.fixture(scope="module", autouse=True)
def no_ray_left_behind() -> Iterator[None]:
    """A process has one Ray connection: the next module could not start its own."""
    yield
    ray = sys.modules.get("ray")
    assert ray is None or not ray.is_initialized(), "this module left a Ray cluster running in the test process"


_MEMORY_BEFORE = pytest.StashKey[set[str]]()


def pytest_sessionstart(session: pytest.Session) -> None:
    """Remember what shared memory others hold."""
    session.config.stash[_MEMORY_BEFORE] = shared_memory()


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Fail where the tests left shared memory. Looked at when all have ended: modules may run side by side."""
    if hasattr(session.config, "workerinput"):  # one of several processes: the one that started them looks
        return
    before = session.config.stash[_MEMORY_BEFORE]
    until = time.monotonic() + 10  # a process that was just killed needs a moment
    while shared_memory() - before and time.monotonic() < until:
        time.sleep(0.1)
    if left := sorted(shared_memory() - before):
        session.config.get_terminal_writer().line(f"\nleft in /dev/shm: {', '.join(left)}", red=True)
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


@pytest.fixture
def engineless_run(monkeypatch: pytest.MonkeyPatch) -> Callable[[Recipe, Path], Run]:
    """Makes runs of a recipe in a folder, without engines: what a learner's call returns is its answer."""
    from rlkd.cluster import Hardware
    from rlkd.trainer import learners
    from rlkd.trainer.console import Console
    from rlkd.trainer.context import Run

    monkeypatch.setattr(learners, "gather", lambda calls, _: calls)

    def make(recipe: Recipe, place: Path) -> Run:
        no: Any = None
        folder: Any = SimpleNamespace(path=place)
        cluster: Any = SimpleNamespace(stop=lambda _: None, hardware=Hardware(cpus=2, gpus=0))
        return Run(recipe, folder, cluster, Console(), no, no, train_prompts=[], eval_prompts=[], pool=no)

    return make
