"""DED (2508.09883): pick a teacher by a small test, drop easy questions, keep the farthest traces."""

from __future__ import annotations

import heapq
import json
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, PrivateAttr, SkipValidation, model_validator

from rlkd.data.curate.step import STEPS, Decision, Removal, Step, keep_traces, traces_of
from rlkd.data.rows import Row, write_rows
from rlkd.data.text import sentences, text_key
from rlkd.errors import DataCardError, MissingExtraError

RunTrial = Callable[[Path, Path], Mapping[str, Any]]


@STEPS.register("teacher_trial")
class TeacherTrial(Step):
    """Keep the traces of one teacher: the one whose small sample makes the best student (DED's smoke test).

    ``size`` rows that every teacher has a trace of are drawn; the ``recipe`` is trained once a teacher on its traces
    of these same rows (as ``stage``'s data), in ``trials/TEACHER`` of the step's folder; the highest held-out pass@1
    stays. Traces that an earlier step labelled wrong are not used. A trial that is done is not run again.
    Source: DED step 1. The size of the sample is not given there.
    """

    kind: ClassVar[str] = "teacher_trial"
    recipe: str = Field(description="an SFT recipe of the student, with data.eval")
    size: int = Field(ge=1)
    stage: str = "sft"
    overrides: tuple[str, ...] = Field(default=(), description="of the recipe, as on a command line")
    seed: int = 0
    run: SkipValidation[RunTrial | None] = Field(default=None, exclude=True)
    _best: str = PrivateAttr(default="")

    @model_validator(mode="after")
    def _recipe_fits(self) -> TeacherTrial:
        from rlkd.recipe import load_recipe
        from rlkd.recipe.schema import SftStage

        loaded = load_recipe(self.recipe, list(self.overrides))
        names = [each.name for each in loaded.stages if isinstance(each, SftStage) and each.target == "policy"]
        if self.stage not in names:
            raise ValueError(f"{self.recipe} has no SFT stage '{self.stage}' of the policy; it has: {names or 'none'}")
        if loaded.data.eval is None:
            raise ValueError(f"{self.recipe} has no data.eval, so nothing would tell the teachers apart")
        return self

    def settings(self) -> dict[str, Any]:
        return {**super().settings(), "recipe_key": text_key(Path(self.recipe).read_text("utf-8")).hex()}

    def survey(self, rows: Callable[[], Iterator[Row]], folder: Path) -> dict[str, Any]:
        teachers = sorted({str(trace["model"]) for row in rows() for trace in _usable(row)})
        if len(teachers) < 2:
            raise DataCardError(f"teacher_trial compares the traces' models, but there is {teachers or 'none'}")
        shared = ((row, dict(_first_traces(row))) for row in rows())
        keyed = (
            (text_key(f"{self.seed} {row['row']}"), at, row, traces)  # the position decides between copies of a row
            for at, (row, traces) in enumerate(shared)
            if len(traces) == len(teachers) and row.get("answer") is not None
        )
        chosen = heapq.nsmallest(self.size, keyed)  # a random sample in one pass
        if len(chosen) < self.size:
            raise DataCardError(
                f"the teachers {', '.join(teachers)} share {len(chosen)} rows; teacher_trial needs size={self.size}"
            )
        found = {}
        for teacher in teachers:
            sample = folder / "trials" / f"{_file_name(teacher)}.jsonl"
            solved = [{**_problem(row), "solution": traces[teacher]} for _, _, row, traces in chosen]
            write_rows(sample, solved)
            found[teacher] = dict((self.run or self._train)(sample, sample.with_suffix("")))
        best = max(teachers, key=lambda each: found[each]["pass@1"])
        return {"trials": found, "best": best, "summary": _trials_in_words(found, best)}

    def _train(self, sample: Path, out: Path) -> Mapping[str, Any]:
        """The recipe's run on a sample; a finished one is read, a killed one goes on."""
        if (after := _finished(out)) is None:
            fields = "{question: '{question}', answer: '{answer}', solution: '{solution}'}"
            data = (
                f"stages.{self.stage}.data={{kind: file, path: {json.dumps(str(sample.resolve()))}, fields: {fields}}}"
            )
            command = [sys.executable, "-m", "rlkd", "train", self.recipe, *self.overrides, data, "--out", str(out)]
            ended = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
            if ended.returncode or (after := _finished(out)) is None:
                raise DataCardError(
                    f"teacher_trial: {out} ended with status {ended.returncode}:\n{ended.stdout[-2000:]}"
                )
        return {key: after[key] for key in ("pass@1", "ci95", "n")}

    def prepare(self, survey: Mapping[str, Any]) -> None:
        self._best = survey["best"]

    def decide(self, rows: Sequence[Row]) -> list[Decision]:
        return [self._decide(row) for row in rows]

    def _decide(self, row: Row) -> Decision:
        models = [str(trace.get("model")) for trace in traces_of(row)]
        gone = {at: Removal("another teacher", {"model": name}) for at, name in enumerate(models) if name != self._best}
        return keep_traces(row, gone)


def _finished(out: Path) -> Mapping[str, Any] | None:
    """Held-out figures of a run that ended."""
    path = out / "summary.json"
    summary = json.loads(path.read_text("utf-8")) if path.is_file() else {}
    after: Mapping[str, Any] | None = summary["eval"]["after"] if summary.get("status") == "finished" else None
    return after


def _usable(row: Row) -> Iterator[Row]:
    """Traces that name their model and were not judged wrong."""
    return (trace for trace in traces_of(row) if trace.get("model") and trace.get("right") is not False)


def _first_traces(row: Row) -> Iterator[tuple[str, str]]:
    for trace in reversed(list(_usable(row))):
        yield str(trace["model"]), trace["text"]


def _problem(row: Row) -> Row:
    return {"id": row["id"], "question": row["question"], "answer": row["answer"]}


def _file_name(teacher: str) -> str:
    return (
        "".join(sign if sign.isalnum() or sign in "-." else "-" for sign in teacher) + f"-{text_key(teacher).hex()[:6]}"
    )


def _trials_in_words(found: Mapping[str, Mapping[str, Any]], best: str) -> str:
    """Scores with their intervals; whether the choice is more than chance."""
    shown = ", ".join(
        f"{name} {each['pass@1']:.1%} ({each['ci95'][0]:.1%} to {each['ci95'][1]:.1%})" for name, each in found.items()
    )
    near = [name for name, each in found.items() if name != best and each["ci95"][1] > found[best]["ci95"][0]]
    doubt = (
        f"; the interval of {', '.join(near)} overlaps: a larger size or more held-out problems tell" if near else ""
    )
    return f"held-out pass@1: {shown}; kept {best}{doubt}"


@STEPS.register("farthest_traces")
class FarthestTraces(Step):
    """Keep the ``keep`` traces of a question that are farthest from each other by normalised edit distance.

    Greedy farthest-point choice: the pair with the largest distance first, then the trace whose nearest chosen one
    is farthest. Distance: Levenshtein over ``unit``, divided by the longer length.
    Source: DED step 4; unit, normalisation and exact rule are not given there. About 4 traces a question were kept.
    """

    kind: ClassVar[str] = "farthest_traces"
    keep: int = Field(default=4, ge=1)
    unit: str = Field(default="word", pattern="^(character|word|sentence)$")

    def decide(self, rows: Sequence[Row]) -> list[Decision]:
        return [self._decide(row) for row in rows]

    def _decide(self, row: Row) -> Decision:
        traces = traces_of(row)
        if len(traces) <= self.keep:
            return Decision(row)
        chosen = farthest(edit_distances([trace["text"] for trace in traces], self.unit), self.keep)
        gone = {at: None if at in chosen else Removal("near a kept trace", {}) for at in range(len(traces))}
        return keep_traces(row, gone)


def edit_distances(texts: Sequence[str], unit: str = "word") -> NDArray[np.float64]:
    """[N, N] normalised Levenshtein distances in [0, 1]."""
    try:
        from rapidfuzz.distance import Levenshtein
    except ImportError as error:
        raise MissingExtraError("farthest_traces needs rapidfuzz: pip install 'rlkd[train]'") from error
    items = [_units(text, unit) for text in texts]
    out = np.zeros((len(texts), len(texts)))
    for i in range(len(texts)):
        for j in range(i):
            out[i, j] = out[j, i] = Levenshtein.normalized_distance(items[i], items[j])
    return out


def _units(text: str, unit: str) -> Sequence[str]:
    if unit == "character":
        return text
    return text.split() if unit == "word" else [text[begin:end].strip() for begin, end in sentences(text)]


def farthest(distances: NDArray[np.float64], count: int) -> list[int]:
    """Greedy max-min choice of ``count`` points, in the order of choice; ties go to the earlier point."""
    if count >= len(distances):
        return list(range(len(distances)))
    if count == 1:  # one point is no pair: take the one nearest to all others, the typical trace
        return [int(distances.sum(axis=1).argmin())]
    first, second = np.unravel_index(int(distances.argmax()), distances.shape)
    chosen = [int(first), int(second)]
    while len(chosen) < count:
        nearest = distances[:, chosen].min(axis=1)
        nearest[chosen] = -1.0
        chosen.append(int(nearest.argmax()))
    return chosen
