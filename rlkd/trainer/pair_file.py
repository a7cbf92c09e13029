"""Pairs as an offline stage keeps them: token ids in a file of its folder, and the counts beside it."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rlkd.data.rows import Row


@dataclass(frozen=True)
class Pair:
    """A right and a wrong trace of one problem, as tokens."""

    id: str
    question: str
    prompt_ids: tuple[int, ...]
    right_ids: tuple[int, ...]
    wrong_ids: tuple[int, ...]

    @classmethod
    def of(cls, row: Row) -> Pair:
        """From a row of JSON, whose lists are tuples here."""
        values: Row = {name: tuple(value) if isinstance(value, list) else value for name, value in row.items()}
        return cls(**values)


class PairFile(Sequence[Pair]):
    """The pairs of a finished file, read where they lie: 53,000 pairs of long traces need not fit into memory."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.offsets: list[int] = []
        with path.open("rb") as stream:
            position = 0
            for line in stream:
                self.offsets.append(position)
                position += len(line)

    def __len__(self) -> int:
        return len(self.offsets)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[at] for at in range(*index.indices(len(self)))]
        with self.path.open("rb") as stream:
            stream.seek(self.offsets[index])
            row = json.loads(stream.readline())
        return Pair.of(row)


@dataclass
class PairReport:
    """What became of the traces and pairs, what sampling them cost, and how many verdicts abstained."""

    kept: int = 0
    excluded: Counter[str] = field(default_factory=Counter)
    traces: Counter[str] = field(default_factory=Counter)
    generated: int = 0
    abstained: int = 0

    def add(self, part: PairReport) -> None:
        """Count a part of the traces in."""
        self.excluded.update(part.excluded)
        self.traces.update(part.traces)
        self.generated += part.generated
        self.abstained += part.abstained
