"""Rows chosen by field values, and traces labelled right or wrong."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import Field, SkipValidation, model_validator

from reward.verdict import Verdict
from rlkd.data.curate.step import MODEL_ROWS, STEPS, Decision, Removal, Step, check_fields, keep_traces, traces_of
from rlkd.data.fields import as_claim, lookup
from rlkd.data.rows import Row

VerifyBatch = Callable[[Sequence[tuple[str, Mapping[str, Any]]]], Sequence[Verdict]]
Label = Literal["both", "verifier", "claim"]


@STEPS.register("where_filter")
class WhereFilter(Step):
    """Keep rows whose fields have one of the ``keep`` values and none of the ``drop`` values.

    Names may be dotted (``meta.source``). REDI: ``keep={"problem_is_valid": ["Yes"]}, drop={"source": ["cn_k12"]}``.
    """

    kind: ClassVar[str] = "where_filter"
    keep: dict[str, tuple[Any, ...]] = Field(default_factory=dict)
    drop: dict[str, tuple[Any, ...]] = Field(default_factory=dict)

    def survey(self, rows: Callable[[], Iterator[Row]], folder: Path) -> None:  # noqa: ARG002
        check_fields(self, rows(), *self.keep, *self.drop)

    def decide(self, rows: Sequence[Row]) -> list[Decision]:
        return [self._decide(row) for row in rows]

    def _decide(self, row: Row) -> Decision:
        for name, values in self.keep.items():
            if (value := lookup(row, name, default=None)) not in values:
                named = dict.fromkeys(map(str, values))  # of the command line a number is there as text too
                return Decision.drop(f"{name} is none of {', '.join(named)}", value=value)
        for name, values in self.drop.items():
            if (value := lookup(row, name, default=None)) in values:
                return Decision.drop(f"{name} is {value}")
        return Decision(row)


@STEPS.register("label_traces")
class LabelTraces(Step):
    """Judge every trace: ``right`` becomes True, False or None (the verifier abstained), ``verdict`` its reason.

    ``keep: right`` drops every other trace. A ``claim`` as text or 1/0 becomes true, false or null; any other is an
    error.
    """

    kind: ClassVar[str] = "label_traces"
    rows_at_once: ClassVar[int | None] = MODEL_ROWS
    label: Label = "verifier"
    keep: Literal["all", "right"] = "all"
    verify_batch: SkipValidation[VerifyBatch | None] = Field(default=None, exclude=True)

    @model_validator(mode="after")
    def _somebody_judges(self) -> LabelTraces:
        if self.verify_batch is None and self.label != "claim":
            raise ValueError("needs a line of the curation, verifier: NAME, or label: claim (the publisher's word)")
        return self

    def decide(self, rows: Sequence[Row]) -> list[Decision]:
        items = [(trace["text"], row) for row in rows for trace in traces_of(row)]
        verdicts = self.verify_batch(items) if self.verify_batch and self.label != "claim" else [None] * len(items)
        labelled = iter(verdicts)
        return [
            self._decide({**row, "traces": [self._labelled(trace, next(labelled), row) for trace in row["traces"]]})
            for row in rows
        ]

    def _decide(self, row: Row) -> Decision:
        if self.keep == "all":
            return Decision(row)
        verdicts = [(trace["right"], trace["verdict"]) for trace in row["traces"]]
        gone = {at: Removal("not right", {"verdict": why}) for at, (right, why) in enumerate(verdicts) if not right}
        return keep_traces(row, gone)

    def _labelled(self, trace: Row, verdict: Verdict | None, row: Row) -> Row:
        claim = as_claim(trace.get("claim"), f"row {row['row']}, claim of a trace")
        score = None if verdict is None else verdict.score
        checked = None if score is None else score >= 1.0
        right = {"verifier": checked, "claim": claim, "both": _both(checked, claim)}[self.label]
        said = {"claim": claim} if "claim" in trace else {}
        reason = verdict.reason if verdict else "not asked"
        return {**trace, **said, "right": right, "checked": checked, "verdict": reason}


def _both(checked: bool | None, claim: bool | None) -> bool | None:
    """Right when both say so, wrong when either denies, unknown otherwise."""
    if checked is False or claim is False:
        return False
    return True if checked and claim else None
