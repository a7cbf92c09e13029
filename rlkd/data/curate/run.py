"""Running steps part by part: constant memory, atomic files, resume after a crash, one report a step.

out/00-read/part-00000.jsonl       rows that go on
            removed-00000.jsonl    what was taken out, why, and the evidence
            done-00000.json        counts; written last, so a part without it is done again
            .slice-00000-00064.jsonl   decisions of a step that asks a model, until the part is done
            report.json            counts of the whole step
out/01-exact_dedup/...
out/report.json                    every step, in order
out/train.jsonl                    the result, flat: a line a trace (its ``solution``), or a row without traces
"""

from __future__ import annotations

import hashlib
import json
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rlkd.data.cards import DataCard, Reading
from rlkd.data.curate.report import NAMED_ROWS, StepReport, rows_by_reason
from rlkd.data.curate.shape import shaped
from rlkd.data.curate.step import Decision, Removal, Step
from rlkd.data.rows import BadRow, Row, good_rows, read_rows, shards, write_json, write_rows
from rlkd.data.text import text_key
from rlkd.errors import DataCardError

PART_ROWS = 10_000
PART_CHARS = 32 * 2**20  # a part of long traces ends sooner
TEXT_EVIDENCE_CHARS = 2_000


Files = str | Path | list[str]


def curate(
    source: Files | Iterable[Row],
    steps: Sequence[Step],
    out: str | Path,
    *,
    reading: Reading | None = None,
    part_rows: int = PART_ROWS,
    progress: Callable[[StepReport], None] | None = None,
    rows_from: Any = None,
) -> list[StepReport]:
    """Read rows, run the steps over them in order, and write what is kept, what is removed and a report.

    Args:
        source: a file of rows, a folder, a pattern or a list of files, or rows (in the same order after a crash).
        steps: run one after another, each over all parts; a step's memory is freed before the next.
        out: folder of the results. Called again with the same source and steps, it goes on where it stopped.
        reading: turns raw rows into examples, as a card's; rows that cannot be read so are set aside with the reason.
        progress: told of every step that ended.
        rows_from: what rows that are in no file come from, as ``card_identity`` says; a resume must say the same.

    Returns: one report a step, the reading first.
    Raises: DataCardError when ``out`` holds the results of another source or of other settings, the source has no row,
        or a step left none.
    """
    out = Path(out)
    read_as = reading.model_dump(mode="json") if reading else None
    chain = _digest(identity(source, rows_from), part_rows, PART_CHARS, read_as)
    folder = out / "00-read"
    reports = [_run_read(source, reading, folder, chain, part_rows)]
    told = progress or (lambda _: None)
    told(reports[0])
    for number, step in enumerate(steps, start=1):
        name = step.kind or type(step).__name__
        chain = _digest(chain, name, step.settings())
        target = out / f"{number:02d}-{name}"
        reports.append(_run_step(step, name, folder, target, chain))
        told(reports[-1])
        folder = target
    write_rows(out / "train.jsonl", (line for row in _rows_of(folder) for line in _flat(row)))
    write_json(out / "report.json", {"result": folder.name, "steps": [report.as_json() for report in reports]})
    return reports


def curated_rows(out: str | Path) -> Iterator[Row]:
    """The rows that passed every step of a finished run."""
    out = Path(out)
    if not (out / "report.json").is_file():
        raise DataCardError(f"{out} holds no finished curation: no report.json")
    folder = out / json.loads((out / "report.json").read_text("utf-8"))["result"]
    yield from _rows_of(folder)


def _rows_of(folder: Path) -> Iterator[Row]:
    return (row for part in _parts(folder) for row in good_rows(part))


def _flat(row: Row) -> Iterator[Row]:
    """Training examples of a row: plain values and ``options``, as recipes name them under ``fields``.

    What a trace says under a name that the row uses too becomes ``trace_NAME``: a trace's answer is not the gold.
    """
    plain = {key: value for key, value in row.items() if key == "options" or not isinstance(value, (dict, list))}
    if "traces" not in row:
        yield plain
    for trace in row.get("traces", ()):
        line = {**plain, "solution": trace["text"]}
        more = {key: value for key, value in trace.items() if key != "text" and not isinstance(value, (dict, list))}
        yield line | {_free(key, "trace_", line): value for key, value in more.items()}


def _free(key: str, prefix: str, taken: Mapping[str, Any]) -> str:
    """The key, prefixed while another value has that name."""
    return _free(prefix + key, prefix, taken) if key in taken else key


def _run_read(
    source: Files | Iterable[Row], reading: Reading | None, folder: Path, chain: str, part_rows: int
) -> StepReport:
    report = _open_folder(folder, "read", {"part_rows": part_rows}, chain)
    started = time.monotonic(), time.process_time()
    seen: set[bytes] = set()
    for part, chunk in enumerate(_chunks(_numbered(source), part_rows)):
        if (done := _done_counts(folder, part)) is None:
            decisions = [_read_row(number, where, row, reading) for number, where, row in chunk]
            blank: list[Row] = [{"id": str(number), "row": number} for number, *_ in chunk]
            again = _repeated_ids((decision.row for decision in decisions if decision.row is not None), seen)
            done = _write_part(folder, part, blank, decisions, {"id of an earlier row (kept)": again} if again else {})
        else:
            _repeated_ids(good_rows(folder / f"part-{part:05d}.jsonl"), seen)
            report.reused_parts += 1
        report.add(done)
    files = _files(source)
    named = "the source" if files is None else ", ".join(map(str, files[:3])) + (", ..." if files[3:] else "")
    return _close_report(report, folder, started, named)


def _files(source: Files | Iterable[Row]) -> list[Path] | None:
    """The files that a path, or a list of paths, names; None for rows, which may be a list too."""
    if isinstance(source, (str, Path)):
        return shards(source)
    named = [each for each in source if isinstance(each, str)] if isinstance(source, list) else []
    return shards(named) if named else None


Numbered = tuple[int, dict[str, Any], Row | BadRow]


def _numbered(source: Files | Iterable[Row]) -> Iterator[Numbered]:
    """Every row, its number over all files, and its file and line where there are several."""
    if (files := _files(source)) is None:
        rows: Any = source
        yield from ((number, {}, row) for number, row in enumerate(rows, start=1))
        return
    before = 0
    for file in files:
        number = 0
        for number, row in read_rows(file):
            yield before + number, {"file": file.name, "line": number} if len(files) > 1 else {}, row
        before += number


def _read_row(number: int, where: dict[str, Any], row: Row | BadRow, reading: Reading | None) -> Decision:
    if isinstance(row, BadRow):
        return Decision.drop("unreadable row", **where, why=row.reason, excerpt=row.excerpt)
    try:
        example, removals = shaped(reading.example(row) if reading is not None else dict(row))
    except DataCardError as error:
        return Decision.drop("no example", **where, why=str(error))
    if "row" in example:  # the user's own column: the name is taken
        name = _free("row", "source_", example)
        example[name] = example.pop("row")
    return Decision({"id": str(number), **example, "row": number}, removals)


def _repeated_ids(rows: Iterable[Row], seen: set[bytes]) -> list[int]:
    """Rows whose id occurred before. Eight bytes of hash a row."""
    found = []
    for row in rows:
        key = text_key(str(row["id"]))[:8]
        if key in seen:
            found.append(row["row"])
        seen.add(key)
    return found


def _run_step(step: Step, name: str, source: Path, folder: Path, chain: str) -> StepReport:
    report = _open_folder(folder, name, step.settings(), chain)
    started = time.monotonic(), time.process_time()
    report.survey = _survey(step, source, folder)
    step.prepare(report.survey)
    for part, path in enumerate(_parts(source)):
        if (done := _done_counts(folder, part)) is None:
            rows = list(good_rows(path))
            decisions = _decisions(step, name, rows, folder / f".slice-{part:05d}")
            done = _write_part(folder, part, rows, decisions, {})
        else:
            step.remember(list(good_rows(folder / f"part-{part:05d}.jsonl")))
            report.reused_parts += 1
        for slice_ in folder.glob(f".slice-{part:05d}-*"):  # the part is whole
            slice_.unlink()
        report.add(done)
    step.forget()
    return _close_report(report, folder, started, source)


def _decisions(step: Step, name: str, rows: Sequence[Row], slices: Path) -> list[Decision]:
    """The step's decisions about a part; of a step with ``rows_at_once``, each slice of it is kept until the end."""
    size = step.rows_at_once
    if size is None:
        return _decided(step, name, rows)
    found: list[Decision] = []
    for start in range(0, len(rows), size):
        path = slices.with_name(f"{slices.name}-{start:05d}.jsonl")
        if path.is_file():
            read = [_decision_of(line) for line in good_rows(path)]
            step.remember([each.row for each in read if each.row is not None])
        else:
            read = _decided(step, name, rows[start : start + size])
            write_rows(path, map(asdict, read))
        found += read
    return found


def _decided(step: Step, name: str, rows: Sequence[Row]) -> list[Decision]:
    decisions = step.decide(rows)
    if len(decisions) != len(rows):
        raise DataCardError(f"step '{name}' made {len(decisions)} decisions for {len(rows)} rows")
    return decisions


def _decision_of(line: Row) -> Decision:
    return Decision(line["row"], tuple(Removal(**each) for each in line["removals"]), line["copies"])


def _survey(step: Step, source: Path, folder: Path) -> dict[str, Any]:
    """What the step finds out about all rows first; done once."""
    mark = folder / "survey.json"
    if mark.is_file():
        found: dict[str, Any] = json.loads(mark.read_text("utf-8"))
        return found
    found = step.survey(lambda: _rows_of(source), folder) or {}
    if found:
        write_json(mark, found)
    return found


def _parts(folder: Path) -> list[Path]:
    return sorted(folder.glob("part-*.jsonl"))


def _open_folder(folder: Path, name: str, settings: dict[str, Any], chain: str) -> StepReport:
    folder.mkdir(parents=True, exist_ok=True)
    mark = folder / "step.json"
    found = json.loads(mark.read_text("utf-8")) if mark.is_file() else {}
    if found.get("chain") != chain:
        names = {path.name for path in folder.iterdir()} - {mark.name}
        if any(not each.startswith(".") or each.startswith(".slice-") for each in names):  # else it stopped at once
            raise DataCardError(
                f"{folder} holds results of another source or of other settings ({found['settings']}; now {settings}); "
                "name another --out, or delete that folder and the ones after it"
            )
        write_json(mark, {"chain": chain, "name": name, "settings": settings})
    return StepReport(name, settings)


def _done_counts(folder: Path, part: int) -> dict[str, Any] | None:
    mark = folder / f"done-{part:05d}.json"
    return json.loads(mark.read_text("utf-8")) if mark.is_file() else None


def _write_part(
    folder: Path,
    part: int,
    rows: Sequence[Row],
    decisions: Sequence[Decision],
    noted: Mapping[str, list[int]],
) -> dict[str, Any]:
    kept = [decision.row for decision in decisions if decision.row is not None for _ in range(decision.copies)]
    removed = [line for row, decision in zip(rows, decisions, strict=True) for line in _removed_lines(row, decision)]
    write_rows(folder / f"part-{part:05d}.jsonl", kept)
    write_rows(folder / f"removed-{part:05d}.jsonl", removed)
    counts = {
        "rows_in": len(decisions),
        "rows_out": len(kept),
        "traces_in": sum(map(_trace_count, rows)),
        "traces_out": sum(map(_trace_count, kept)),
        "removed": Counter(line["reason"] for line in removed),
        "named": {
            reason: numbers[:NAMED_ROWS] for reason, numbers in [*rows_by_reason(removed).items(), *noted.items()]
        },
    }
    write_json(folder / f"done-{part:05d}.json", counts)
    return counts


def _removed_lines(row: Row, decision: Decision) -> Iterator[Row]:
    for removal in decision.removals:
        line: Row = {"id": row.get("id"), "row": row.get("row"), "reason": removal.reason, **removal.evidence}
        if removal.trace is not None:
            line |= {"trace": removal.trace}
            if "traces" in row:
                line["text"] = row["traces"][removal.trace]["text"][:TEXT_EVIDENCE_CHARS]
        elif "question" in row:
            line["question"] = row["question"]
        yield line


def _trace_count(row: Row) -> int:
    traces = row.get("traces")
    return len(traces) if isinstance(traces, list) else 0


def _close_report(report: StepReport, folder: Path, started: tuple[float, float], source: Any) -> StepReport:
    report.wall_s = round(time.monotonic() - started[0], 3)
    report.cpu_s = round(time.process_time() - started[1], 3)
    if not report.rows_in:
        raise DataCardError(f"{source} holds no row; nothing to curate")
    write_json(folder / "report.json", report.as_json())
    if not report.rows_out:
        raise DataCardError(f"{report.line()}\nno row is left; why: {_first_removal(folder)}")
    return report


def _first_removal(folder: Path) -> str:
    path = min(folder.glob("removed-*.jsonl"))
    return f"{path} begins with {next(good_rows(path), {})}"


def card_identity(card: DataCard, data_dir: str | None = None) -> Any:
    """What must be the same of a card's rows when a run goes on. Raises: DataCardError when its file is not there."""
    source = card.source
    if source.file is not None:
        return identity(card.path(data_dir))
    return [card.name, source.hub, source.config, source.revision]


def identity(source: Files | Iterable[Row], rows_from: Any = None) -> Any:
    """What must be the same when a run goes on. Raises: DataCardError when there is no such file."""
    if (files := _files(source)) is None:
        return ["rows", rows_from]  # the caller vouches that they come again in the same order
    return [[file.name, file.stat().st_size, file.stat().st_mtime_ns] for file in files]


def _digest(*parts: Any) -> str:
    return hashlib.blake2b(json.dumps(parts, sort_keys=True, default=str).encode(), digest_size=16).hexdigest()


def _chunks(numbered: Iterable[Numbered], rows: int) -> Iterator[list[Numbered]]:
    """Parts of at most so many rows and about ``PART_CHARS`` characters."""
    chunk: list[Numbered] = []
    chars = 0
    for item in numbered:
        chunk.append(item)
        chars += _chars(item[2])
        if len(chunk) == rows or chars >= PART_CHARS:
            yield chunk
            chunk, chars = [], 0
    if chunk:
        yield chunk


def _chars(value: Any) -> int:
    if isinstance(value, str):
        return len(value)
    if isinstance(value, dict):
        return sum(map(_chars, value.values()))
    return sum(map(_chars, value)) if isinstance(value, list) else 0
