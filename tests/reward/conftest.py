"""Where the shared cases and data are."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from rlkd.audit import read_cases


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real data; tests that need it skip only where it is absent."""
    folder = Path(os.environ.get("RLKD_SHARED", Path(__file__).parents[3] / "shared"))
    if not folder.is_dir():
        pytest.skip(f"no shared data folder at {folder}; set RLKD_SHARED")
    return folder


@pytest.fixture(scope="session")
def reported(shared: Path) -> list[dict[str, Any]]:
    """The publicly reported cases."""
    return read_cases(shared / "cases" / "verifier.jsonl")
