"""What a curation step did: counts, the rows that it named, times."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from rlkd.data.rows import Row

NAMED_ROWS = 8


@dataclass
class StepReport:
    """Counts of one step. ``wall_s`` and ``cpu_s`` cover the parts done here, ``reused_parts`` were found done."""

    name: str
    settings: dict[str, Any]
    rows_in: int = 0
    rows_out: int = 0
    traces_in: int = 0
    traces_out: int = 0
    removed: Counter[str] = field(default_factory=Counter)
    parts: int = 0
    reused_parts: int = 0
    wall_s: float = 0.0
    cpu_s: float = 0.0
    survey: dict[str, Any] = field(default_factory=dict)
    named: dict[str, list[int]] = field(default_factory=dict)  # the first rows of each reason

    def add(self, counts: Mapping[str, Any]) -> None:
        for key in ("rows_in", "rows_out", "traces_in", "traces_out"):
            setattr(self, key, getattr(self, key) + counts[key])
        self.removed.update(counts["removed"])
        for reason, numbers in counts["named"].items():
            self.named[reason] = [*self.named.get(reason, ()), *numbers][:NAMED_ROWS]
        self.parts += 1

    def as_json(self) -> dict[str, Any]:
        """The report as plain data."""
        return {**vars(self), "removed": dict(self.removed.most_common())}

    def line(self) -> str:
        """The report in one line; of the reading, a line more a reason, with the rows."""
        removed = ", ".join(f"{reason} {count}" for reason, count in self.removed.most_common())
        traces = f", traces {self.traces_in} -> {self.traces_out}" if self.traces_in else ""
        if self.name == "read" and self.traces_out:
            traces = f", traces {self.traces_out}"
        found = f"; {self.survey['summary']}" if "summary" in self.survey else ""
        line = (
            f"{self.name}: rows {self.rows_in} -> {self.rows_out}{traces}"
            + (f" ({removed})" if removed else "")
            + found
        )
        return "\n".join([line, *(self._named_lines() if self.name == "read" else ())])

    def _named_lines(self) -> Iterator[str]:
        for reason, numbers in self.named.items():
            more = ", ..." if len(numbers) == NAMED_ROWS else ""
            yield f"  {reason}: row {', '.join(map(str, numbers))}{more}"


def rows_by_reason(removed: Iterable[Row]) -> dict[str, list[int]]:
    """The rows of each reason, in order."""
    found: dict[str, list[int]] = {}
    for line in removed:
        numbers = found.setdefault(line["reason"], [])
        if line["row"] not in numbers[-1:]:
            numbers.append(line["row"])
    return found
