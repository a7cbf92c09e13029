"""Verdicts that a policy gets right before it has learned anything."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def even_length(completion: str, example: Mapping[str, Any]) -> float:
    """1 for a completion of an even number of characters."""
    del example
    return float(len(completion) % 2 == 0)
