"""Figures of a step: (sum, count) pairs merged once, one JSON line, and accelerate's trackers by choice."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

Counts = Mapping[str, tuple[float, float]]
_PEAKS = ("/max",)  # merged by maximum
_SUMS = ("loss",)  # shares of ranks and micro-batches, already divided by the global denominator: they add up


def merge(parts: Iterable[Counts]) -> dict[str, float]:
    """Means over all micro-batches and ranks; ``loss`` adds up, ``*/max`` takes the largest."""
    sums: dict[str, tuple[float, float]] = {}
    for part in parts:
        for name, (total, count) in part.items():
            before = sums.get(name)
            if before is None:
                sums[name] = (total, count)
            elif name.endswith(_PEAKS):
                sums[name] = (max(before[0], total), 1.0)
            else:
                sums[name] = (before[0] + total, before[1] + count)
    return {
        name: total if name in _SUMS else total / count
        for name, (total, count) in sums.items()
        if count or name in _SUMS
    }


class MetricsLog:
    """``metrics.jsonl`` (a line a step, flushed) and trackers.

    On resume the file is cut back to the byte position of the checkpoint, so that a step stands in it once.
    """

    def __init__(self, folder: Path, *, name: str, trackers: Sequence[str] = (), position: int) -> None:
        self.path = folder / "metrics.jsonl"
        if self.path.exists():
            os.truncate(self.path, min(position, self.path.stat().st_size))
        self.lines = self.path.read_bytes().count(b"\n") if self.path.exists() else 0
        self.stream = self.path.open("a", encoding="utf-8")
        self.trackers = [_tracker(kind, folder, name) for kind in trackers]

    def write(self, row: Mapping[str, Any]) -> None:
        """Append one step. Not-a-number becomes null: the file stays JSON."""
        clean = {key: _finite(value) for key, value in row.items()}
        self.stream.write(json.dumps(clean, ensure_ascii=False) + "\n")
        self.stream.flush()
        self.lines += 1
        figures = {key: value for key, value in clean.items() if isinstance(value, int | float) and key != "step"}
        for tracker in self.trackers:
            tracker.log(figures, step=self.lines)  # over all stages: trackers refuse a step that begins again

    def position(self) -> int:
        """Bytes written so far, for the checkpoint."""
        return self.stream.tell()

    def close(self) -> None:
        self.stream.close()
        for tracker in self.trackers:
            tracker.finish()


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _tracker(kind: str, folder: Path, name: str) -> Any:
    from accelerate.tracking import TensorBoardTracker, WandBTracker

    if kind == "wandb":
        tracker = WandBTracker(name)
    else:
        tracker = TensorBoardTracker(name, logging_dir=str(folder / "tensorboard"))
    tracker.start()
    return tracker
