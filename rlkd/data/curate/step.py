"""What a curation step is: settings, and a decision about every row with the reason for each removal."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from rlkd.data.fields import lookup
from rlkd.data.rows import Row
from rlkd.errors import DataCardError, did_you_mean
from rlkd.registry import Registry


@dataclass(frozen=True)
class Removal:
    """Why a row, or one trace of it (``trace`` counts from 0), was taken out. ``evidence`` is what to look at."""

    reason: str
    evidence: Mapping[str, Any]
    trace: int | None = None


@dataclass(frozen=True)
class Decision:
    """The row that goes on (None: dropped), how often, and the removals that explain the difference."""

    row: Row | None
    removals: tuple[Removal, ...] = ()
    copies: int = 1

    @staticmethod
    def drop(reason: str, **evidence: Any) -> Decision:
        return Decision(None, (Removal(reason, evidence),))


class Step(BaseModel):
    """One step. Its fields are its settings: checked, written to the report, and part of what a resume must match."""

    model_config = ConfigDict(extra="forbid", arbitrary_types_allowed=True)
    kind: ClassVar[str] = ""
    rows_at_once: ClassVar[int | None] = None  # decided rows are kept in such slices of a part; None: by whole parts
    made_of: dict[str, Any] = Field(default_factory=dict, exclude=True, description="its models and functions, by name")

    def survey(self, rows: Callable[[], Iterator[Row]], folder: Path) -> dict[str, Any] | None:
        """What must be known of all rows before the first decision. It is written once, reported, and read by a resume.

        ``rows`` begins a pass over all rows; ``folder`` is the step's, for what a resume should find again.
        The result's ``summary`` is printed.
        """

    def prepare(self, survey: Mapping[str, Any]) -> None:
        """Take in the survey, of this run or of the one that goes on."""

    def decide(self, rows: Sequence[Row]) -> list[Decision]:
        """One decision a row, in order. A step may remember rows of earlier calls."""
        raise NotImplementedError

    def remember(self, kept: Sequence[Row]) -> None:
        """Take in rows that an earlier, interrupted run of this step kept. A step without memory ignores them."""

    def forget(self) -> None:
        """Free what was remembered, as the step is over."""

    def settings(self) -> dict[str, Any]:
        """The settings as plain data; models and functions that a step was given by their names."""
        return self.model_dump(mode="json") | ({"made_of": self.made_of} if self.made_of else {})


MODEL_ROWS = 64  # of a step that asks a model or a verifier: what is lost when that one dies, and no more

STEPS: Registry[type[Step]] = Registry("curation step")


def build_step(spec: Mapping[str, Any], **parts: Any) -> Step:
    """Build a step from ``{"step": name, setting: value, ...}``; ``parts`` are models or functions that it may need.

    Raises: DataCardError naming the setting that is unknown, missing or of the wrong type.
    """
    options = dict(spec)
    name = options.pop("step", None)
    if not isinstance(name, str):
        example = next((f"; write {{step: {key}, ...}}" for key in options if key in STEPS), "")
        raise DataCardError(
            f"a curation step needs 'step: NAME'; got {sorted(options)}{example}; known: {', '.join(STEPS)}"
        )
    kind = STEPS[name]
    given = {key for key, field in kind.model_fields.items() if field.exclude}
    if inner := sorted(given & options.keys()):
        raise DataCardError(f"curation step '{name}': {', '.join(inner)}: comes from the curation, not from the step")
    wanted = {key: value for key, value in parts.items() if key in kind.model_fields}
    try:
        return kind(**options, **wanted)
    except ValidationError as error:
        raise DataCardError(f"curation step '{name}': {'; '.join(validation_lines(error, kind))}") from error


def validation_lines(error: ValidationError, kind: type[BaseModel]) -> list[str]:
    """What is wrong, a line a field; an unknown one with what there is."""
    known = [key for key, field in kind.model_fields.items() if not field.exclude]
    lines = []
    for item in error.errors():
        name = ".".join(map(str, item["loc"]))
        if item["type"] == "extra_forbidden" and len(item["loc"]) == 1:
            lines.append(f"{name}: unknown{did_you_mean(name, known)}; known: {', '.join(known) or 'none'}")
        else:
            said = item["msg"].removeprefix("Value error, ").replace("valid tuple", "valid list")
            got = f" (given: {str(item['input'])[:60]!r})" if item["loc"] and item["type"] != "missing" else ""
            lines.append(f"{name}: {said}{got}" if name else said)
    return lines


def check_fields(step: Step, rows: Iterable[Row], *names: str) -> None:
    """A field that no row has is a slip. Reads until each was found. Raises: DataCardError with the nearest one."""
    missing, known, count = list(names), dict[str, None](), 0
    for row in rows:
        missing = [name for name in missing if lookup(row, name, default=None) is None]
        if not missing:
            return
        known |= dict.fromkeys(map(str, row))
        count += 1
    if missing and count:
        raise DataCardError(
            f"step '{step.kind}': none of {count} rows has the field '{missing[0]}'"
            f"{did_you_mean(missing[0], known)}; they have {', '.join(known)}"
        )


class TraceStep(Step):
    """A step that judges single traces of a row; a row that has no trace left is dropped."""

    def judge(self, trace: Row) -> Removal | None:
        """Why this trace goes, or None when it stays. The trace's position is filled in by ``decide``."""
        raise NotImplementedError

    def decide(self, rows: Sequence[Row]) -> list[Decision]:
        return [self._decide(row) for row in rows]

    def _decide(self, row: Row) -> Decision:
        verdicts = [self.judge(trace) for trace in traces_of(row)]
        return keep_traces(row, dict(enumerate(verdicts)))


def traces_of(row: Row) -> list[Row]:
    """The row's traces. Raises: DataCardError when there is no such list."""
    traces = row.get("traces")
    if not isinstance(traces, list):
        raise DataCardError(
            f"row {row.get('id')!r} has no list 'traces'; a trace step needs one (see the card's reading)"
        )
    return traces


def keep_traces(row: Row, verdicts: Mapping[int, Removal | None]) -> Decision:
    """The row without the traces that have a removal; dropped whole when none is left."""
    traces = traces_of(row)
    removals = tuple(Removal(gone.reason, gone.evidence, index) for index, gone in verdicts.items() if gone is not None)
    kept = [trace for index, trace in enumerate(traces) if verdicts.get(index) is None]
    if not kept:
        return Decision(None, removals or (Removal("no traces", {}),))
    return Decision({**row, "traces": kept} if removals else row, removals)
