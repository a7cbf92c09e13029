"""How a row of a cases file becomes a judged pair."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from reward.registry import Spec
from reward.verdict import Verdict
from rlkd.audit import KIND_VERIFIERS, read_cases

OWN = Path(__file__).parent / "cases"
ROUTED: Spec = {"name": "route", "field": "kind", "routes": KIND_VERIFIERS, "default": "math"}


def own_cases(name: str) -> list[dict[str, Any]]:
    return read_cases(OWN / f"{name}.jsonl")


def item(case: Mapping[str, Any]) -> tuple[Any, dict[str, Any]]:
    """(completion, example) as a pool takes it."""
    return case["completion"], {**case, "answer": case["gold"]}


def misjudged(cases: list[dict[str, Any]], verdicts: list[Verdict]) -> list[str]:
    return [
        f"{case['id']}: expected {case['expected']}, got {verdict}"
        for case, verdict in zip(cases, verdicts, strict=True)
        if (verdict.score == 1.0) != case["expected"]
    ]
