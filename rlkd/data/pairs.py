"""Verified positives and negatives from traces, with REDI's filters and a count after each.

    rows -> where filters -> every trace judged -> first right one: an SFT row
                                                -> first right + first wrong one that fit the limits: a pair

Source: REDI (2505.24850) section 4.1 and its data scripts. A trace is right when verifier and publisher's claim both
say so, wrong when either denies it. Differs: a trace on which the verifier abstains is neither (there, a failed parse
counts as wrong); the order of rows stays, as the trainer shuffles with its own seed.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from rlkd.data.cards import DataCard
from rlkd.data.curate.run import curate, curated_rows
from rlkd.data.curate.step import Step, build_step
from rlkd.data.curate.where import Label, VerifyBatch
from rlkd.data.rows import BadRow, Row, atomic_open, dump_row, write_json


class PairSettings(BaseModel):
    """Limits in tokens of the student (or words, without a token counter). REDI: 800, 19,000."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    max_prompt: int | None = Field(default=None, ge=1)
    max_response: int | None = Field(default=None, ge=1)
    pairs_per_problem: int = Field(default=1, ge=1)


def trace_rows(card: DataCard, data_dir: str | Path | None = None) -> Path | Iterator[Row]:
    """What ``build_pairs`` reads of a card: its local file, or its rows as the hub streams them."""
    if card.source.file is not None:
        return card.path(data_dir)
    return (row for _, row in card.rows() if not isinstance(row, BadRow))


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
    source: str | Path | Iterable[Row],
    out: str | Path,
    *,
    card: DataCard | None,
    verify_batch: VerifyBatch | None,
    verifier: Any = None,
    label: Label = "verifier",
    filters: Sequence[Step] = (),
    settings: PairSettings | None = None,
    token_counter: Callable[[str], int] | None = None,
) -> PairReport:
    """Write ``out/sft.jsonl`` and ``out/pairs.jsonl``; judging resumes where an earlier call stopped.

    Args:
        source: a file of rows, or rows; with a card, raw rows of that card, else rows with question, answer and traces.
        verifier: its spec, written to the report; a resume with another one is refused.
        filters: steps to run before judging, e.g. WhereFilter and LengthFilter.
        label: whose word makes a trace right: the verifier's, the publisher's claim, or both (REDI).
    """
    out, settings = Path(out), settings or PairSettings()
    judge = build_step(
        {"step": "label_traces", "label": label}, made_of={"verifier": verifier}, verify_batch=verify_batch
    )
    steps = [*filters, judge]
    reading = card.reading if card else None
    hub = card.source if card else None
    curated = curate(
        source,
        steps,
        out / "judged",
        reading=reading,
        rows_from=[card.name, hub.hub, hub.config, hub.revision] if card and hub else None,
    )
    report = PairReport(curation=[each.line() for each in curated])
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
