"""The run folder as plain data. A run that is still going on, or was killed, can be read as well."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlkd.data.token_bytes import BYTES
from rlkd.errors import CheckpointError

Row = dict[str, Any]


@dataclass(frozen=True)
class RunRecord:
    """What a run left behind. ``summary`` is None before its end."""

    path: Path
    recipe: Row
    manifest: Row
    metrics: list[Row]
    rollouts: dict[tuple[str, int], list[Row]]  # (stage, step), in order -> rollouts, groups together
    fine_tuning: dict[str, list[tuple[int, float]]]  # stage -> (step, loss)
    stages: dict[str, Row]  # finished stage -> its record
    summary: Row | None


def read_run(folder: str | Path) -> RunRecord:
    """Read a run folder. Raises: CheckpointError when it holds no run."""
    path = Path(folder)
    if not (path / "recipe.json").is_file():
        raise CheckpointError(f"{path} holds no run (no recipe.json); give the folder that --out named")
    recipe = _json(path / "recipe.json") or {}
    return RunRecord(
        path=path,
        recipe=recipe,
        manifest=_json(path / "manifest.json") or {},
        metrics=read_lines(path / "metrics.jsonl"),
        rollouts={
            (stage["name"], int(file.stem.partition("-")[2])): read_lines(file)
            for stage in recipe.get("stages", [])
            for file in sorted((path / "rollouts" / stage["name"]).glob("step-*.jsonl"))
        },
        fine_tuning={
            file.parent.name.partition("-")[2]: _losses(file) for file in sorted(path.glob("stages/*/progress.txt"))
        },
        stages={
            file.parent.name.partition("-")[2]: _json(file) or {} for file in sorted(path.glob("stages/*/done.json"))
        },
        summary=_json(path / "summary.json"),
    )


def read_lines(path: Path) -> list[Row]:
    """Rows of a JSON-lines file; a last line that is being written is left out."""
    if not path.is_file():
        return []
    lines = path.read_text(encoding="utf-8").split("\n")
    complete = [line for line in lines[:-1] if line]
    try:
        return [json.loads(line) for line in complete]
    except json.JSONDecodeError as error:
        raise CheckpointError(f"{path}: a line is not JSON ({error}); is it the file of a run?") from None


def _json(path: Path) -> Row | None:
    if not path.is_file():
        return None
    try:
        loaded: Row = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise CheckpointError(f"{path} is not JSON ({error}); was it cut off or edited?") from None
    return loaded


def _losses(path: Path) -> list[tuple[int, float]]:
    pairs = [line.split() for line in path.read_text(encoding="utf-8").splitlines()]
    return [(int(pair[0]), float(pair[1])) for pair in pairs if len(pair) == 2]


def readable_tokens(tokens: list[str]) -> list[str]:
    """Tokens of a byte-level or sentencepiece vocabulary as the text they stand for.

    A token that ends within a character shows its bytes as ``\\xNN``.
    """
    if not any(mark in token for token in tokens for mark in ("Ġ", "Ċ")):
        return [token.replace("▁", " ") for token in tokens]
    return [
        b"".join(BYTES[char] for char in token).decode("utf-8", "backslashreplace")
        if all(char in BYTES for char in token)
        else token
        for token in tokens
    ]
