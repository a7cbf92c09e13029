"""What holds for every test module."""

from __future__ import annotations

import sys
from collections.abc import Iterator

import pytest


@pytest.fixture(scope="module", autouse=True)
def no_ray_left_behind() -> Iterator[None]:
    """A process has one Ray connection: a module that keeps it open breaks whichever later one starts its own."""
    yield
    ray = sys.modules.get("ray")
    assert ray is None or not ray.is_initialized(), "this module left a Ray cluster running in the test process"
