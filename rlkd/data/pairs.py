"""Verified positives and negatives from traces, with REDI's filters and a count after each.

    rows -> where filters -> every trace judged -> first right one: an SFT row
                                                -> first right + first wrong one that fit the limits: a pair

Source: REDI (2505.24850) section 4.1 and its data scripts. A trace is right when verifier and publisher's claim both
say so, wrong when either denies it. Differs: a trace on which the verifier abstains is neither (there, a failed parse
counts as wrong); the order of rows stays, as the trainer shuffles with its own seed.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, SkipValidation

from reward.verdict import Verdict
from rlkd.data.cards import DataCard
from rlkd.data.curate.run import curate, curated_rows
from rlkd.data.curate.step import STEPS, Decision, Step, traces_of
from rlkd.data.rows import Row, atomic_open, dump_row, write_json

VerifyBatch = Callable[[Sequence[tuple[str, Mapping[str, Any]]]], Sequence[Verdict]]
Label = Literal["both", "verifier", "claim"]


@STEPS.register("where_filter")
class WhereFilter(Step):
    """Keep rows whose fields have one of the ``keep`` values and none of the ``drop`` values.

    REDI: ``keep={"problem_is_valid": ["Yes"]}, drop={"source": ["cn_k12"]}``.
    """

    kind: ClassVar[str] = "where_filter"
    keep: dict[str, tuple[Any, ...]] = Field(default_factory=dict)
    drop: dict[str, tuple[Any, ...]] = Field(default_factory=dict)

    def decide(self, rows: Sequence[Row]) -> list[Decision]:
        return [self._decide(row) for row in rows]

    def _decide(self, row: Row) -> Decision:
        for name, values in self.keep.items():
            if row.get(name) not in values:
                return Decision.drop(f"{name} is none of {', '.join(map(str, values))}", value=row.get(name))
        for name, values in self.drop.items():
            if row.get(name) in values:
                return Decision.drop(f"{name} is {row[name]}")
        return Decision(row)


@STEPS.register("label_traces")
class LabelTraces(Step):
    """Judge every trace: ``right`` becomes True, False or None (the verifier abstained), ``verdict`` its reason."""

    kind: ClassVar[str] = "label_traces"
    label: Label = "verifier"
    verifier: Any = Field(default=None, description="its spec, for the report and for resuming")
    verify_batch: SkipValidation[VerifyBatch | None] = Field(default=None, exclude=True)

    def decide(self, rows: Sequence[Row]) -> list[Decision]:
        items = [(trace["text"], row) for row in rows for trace in traces_of(row)]
        if self.verify_batch is None and self.label != "claim":
            raise ValueError("label_traces needs a verifier, unless label is 'claim'")
        verdicts = self.verify_batch(items) if self.verify_batch and self.label != "claim" else [None] * len(items)
        labelled = iter(verdicts)
        return [
            Decision({**row, "traces": [self._labelled(trace, next(labelled)) for trace in row["traces"]]})
            for row in rows
        ]

    def _labelled(self, trace: Row, verdict: Verdict | None) -> Row:
        claim = trace.get("claim")
        score = None if verdict is None else verdict.score
        checked = None if score is None else score >= 1.0
        right = {"verifier": checked, "claim": claim, "both": _both(checked, claim)}[self.label]
        return {**trace, "right": right, "checked": checked, "verdict": verdict.reason if verdict else "not asked"}


def _both(checked: bool | None, claim: bool | None) -> bool | None:
    """Right when both say so, wrong when either denies, unknown otherwise."""
    if checked is False or claim is False:
        return False
    return True if checked and claim else None


class PairSettings(BaseModel):
    """Limits in tokens of the student (or words, without a token counter). REDI: 800, 19,000."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    max_prompt: int | None = Field(default=None, ge=1)
    max_response: int | None = Field(default=None, ge=1)
    pairs_per_problem: int = Field(default=1, ge=1)


@dataclass
class PairReport:
    """Counts in the order of the filters, and how verifier and publisher agree."""

    stages: list[tuple[str, int]] = field(default_factory=list)
    traces: Counter[str] = field(default_factory=Counter)
    verdicts: Counter[str] = field(default_factory=Counter)
    disagreements: Counter[str] = field(default_factory=Counter)
    curation: list[str] = field(default_factory=list)

    def lines(self) -> list[str]:
        """The report, one fact a line."""
        stages = [f"{count:>9,}  {name}" for name, count in self.stages]
        counts = {"traces": self.traces, "verdicts": self.verdicts, "claim against verifier": self.disagreements}
        return [*self.curation, *stages, *(f"{name}: {dict(found)}" for name, found in counts.items() if found)]


def build_pairs(
    source: str | Path,
    out: str | Path,
    *,
    card: DataCard | None,
    verify_batch: VerifyBatch | None,
    label: Label = "verifier",
    filters: Sequence[Step] = (),
    settings: PairSettings | None = None,
    token_counter: Callable[[str], int] | None = None,
) -> PairReport:
    """Write ``out/sft.jsonl`` and ``out/pairs.jsonl``; judging resumes where an earlier call stopped.

    Args:
        source: a file of rows; with a card, raw rows of that card, else rows with question, answer and traces.
        filters: steps to run before judging, e.g. WhereFilter and LengthFilter.
        label: whose word makes a trace right: the verifier's, the publisher's claim, or both (REDI).
    """
    out, settings = Path(out), settings or PairSettings()
    spec = card.verifier if card is not None else None
    steps = [*filters, LabelTraces(label=label, verifier=spec, verify_batch=verify_batch)]
    report = PairReport(curation=[each.line() for each in curate(source, steps, out / "judged", card=card)])
    stages: Counter[str] = Counter()
    length = token_counter or (lambda text: len(text.split()))
    with atomic_open(out / "sft.jsonl") as sft, atomic_open(out / "pairs.jsonl") as pairs:
        for row in curated_rows(out / "judged"):
            _count_traces(report, row)
            sft.writelines(map(dump_row, _sft_rows(row, stages)))
            pairs.writelines(map(dump_row, _pair_rows(row, settings, length, stages)))
    report.stages = [(name, stages[name]) for name in STAGES]
    write_json(out / "report.json", {**vars(report), "settings": settings.model_dump(), "label": label})
    return report


STAGES = (
    "problems judged",
    "with a right trace: SFT rows",
    "with a right and a wrong trace",
    "prompt within the limit",
    "right and wrong trace within the limit",
    "pairs written",
)


def _count_traces(report: PairReport, row: Row) -> None:
    for trace in row["traces"]:
        report.traces[{True: "right", False: "wrong", None: "neither"}[trace["right"]]] += 1
        report.verdicts[trace["verdict"]] += 1
        claim, checked = trace.get("claim"), trace["checked"]
        if claim is not None and checked is not None and claim != checked:
            report.disagreements["claim right, verifier wrong" if claim else "claim wrong, verifier right"] += 1


def _sft_rows(row: Row, stages: Counter[str]) -> Iterator[Row]:
    stages["problems judged"] += 1
    first = next((trace for trace in row["traces"] if trace["right"] is True), None)
    if first is not None:
        stages["with a right trace: SFT rows"] += 1
        yield {**_problem(row), "completion": first["text"], "model": first.get("model")}


def _pair_rows(row: Row, settings: PairSettings, length: Callable[[str], int], stages: Counter[str]) -> Iterator[Row]:
    right = [trace for trace in row["traces"] if trace["right"] is True]
    wrong = [trace for trace in row["traces"] if trace["right"] is False]
    if not right or not wrong:
        return
    stages["with a right and a wrong trace"] += 1
    if settings.max_prompt is not None and length(row["question"]) > settings.max_prompt:
        return
    stages["prompt within the limit"] += 1
    limit = settings.max_response
    right, wrong = ([t for t in group if limit is None or length(t["text"]) <= limit] for group in (right, wrong))
    if not right or not wrong:
        return
    stages["right and wrong trace within the limit"] += 1
    for chosen, rejected in list(zip(right, wrong, strict=False))[: settings.pairs_per_problem]:
        stages["pairs written"] += 1
        yield {
            **_problem(row),
            "chosen": chosen["text"],
            "rejected": rejected["text"],
            "chosen_model": chosen.get("model"),
            "rejected_model": rejected.get("model"),
        }


def _problem(row: Row) -> Row:
    return {key: value for key, value in row.items() if key != "traces"}
