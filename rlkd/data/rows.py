"""Tolerant reading and atomic writing of rows: a bad row is named and set aside, a good one is never lost."""

from __future__ import annotations

import codecs
import csv
import gzip
import io
import json
import os
import sys
import tempfile
import zlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from rlkd.errors import DataCardError, did_you_mean

Row = dict[str, Any]

EXCERPT_CHARS = 80
_CONVERT = "iconv -f latin1 -t utf-8 converts a file"
ENDINGS = (".csv", ".json", ".jsonl", ".jsonl.gz", ".parquet")


@dataclass(frozen=True)
class BadRow:
    """A row that could not be read. ``number`` counts from 1, as an editor does."""

    number: int
    reason: str
    excerpt: str

    def __str__(self) -> str:
        return f"row {self.number}: {self.reason}: {self.excerpt!r}"


def read_rows(path: str | Path) -> Iterator[tuple[int, Row | BadRow]]:
    """Yield ``(row number, row or BadRow)`` of a file with one of ``ENDINGS``, in constant memory.

    A .json file holds one list, which is read whole as it has no rows to stream, or JSON lines. Values of a .csv file
    are text.
    Raises: DataCardError when there is no such file or its ending is unknown.
    """
    path = Path(path)
    if not path.is_file():
        raise DataCardError(f"no such data file: {path}{_near(path)}")
    readers = dict(zip(ENDINGS, (_csv_rows, _json_rows, _jsonl_rows, _jsonl_rows, _parquet_rows), strict=True))
    reader = next((found for ending, found in readers.items() if path.name.endswith(ending)), None)
    if reader is None:
        raise DataCardError(f"cannot read {path}: known endings are {', '.join(ENDINGS)}")
    yield from reader(path)


def _near(path: Path) -> str:
    names = [each.name for each in path.parent.iterdir()] if path.parent.is_dir() else []
    return did_you_mean(path.name, names) or f" (in {path.parent.resolve()})"


def shards(source: str | Path | Sequence[str]) -> list[Path]:
    """The files of a source in order: a file, all files of a folder or of a pattern like ``rows-*.jsonl``, or a list.

    Raises: DataCardError when one is not there.
    """
    found: list[Path] = []
    for each in [source] if isinstance(source, (str, Path)) else source:
        path = Path(each)
        if path.is_dir():
            files = sorted(child for child in path.iterdir() if child.is_file() and not child.name.startswith("."))
        elif any(sign in path.name for sign in "*?["):
            files = sorted(path.parent.glob(path.name))
        else:
            files = [path]
        if not files or not all(file.is_file() for file in files):
            raise DataCardError(f"no such data file: {path}{_near(path)}")
        found += files
    return found


def good_rows(path: str | Path) -> Iterator[Row]:
    """Yield only the rows that can be read."""
    return (row for _, row in read_rows(path) if not isinstance(row, BadRow))


def _jsonl_rows(path: Path) -> Iterator[tuple[int, Row | BadRow]]:
    number = 0
    try:
        for number, raw in enumerate(_lines(path), start=1):
            if raw.strip():
                yield number, _parse(number, raw)
    except (EOFError, zlib.error, gzip.BadGzipFile, UnicodeDecodeError) as error:
        yield number + 1, BadRow(number + 1, f"the file cannot be read beyond this row ({error})", path.name)


def _lines(path: Path) -> Iterator[bytes]:
    """Lines as UTF-8 bytes. A file that announces UTF-16 by its byte order mark is decoded as such."""
    with gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb") as stream:
        head = stream.read(3)
        stream.seek(len(codecs.BOM_UTF8) if head == codecs.BOM_UTF8 else 0)
        if head[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE):
            with io.TextIOWrapper(stream, encoding="utf-16", newline="\n") as text:  # U+2028 ends no line
                for line in text:
                    yield line.encode()
        else:
            yield from stream


def _parse(number: int, raw: bytes) -> Row | BadRow:
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        excerpt = raw[max(0, error.start - 20) : error.start + 20].decode("utf-8", "replace")
        return BadRow(number, f"not UTF-8 at byte {error.start} of the row ({_CONVERT})", excerpt)
    try:
        value = json.loads(text)
    except (json.JSONDecodeError, RecursionError) as error:
        return BadRow(number, f"not JSON ({error})", text[:EXCERPT_CHARS])
    if "\\ud" in text.lower() and (lone := _lone_surrogate(value)):
        return BadRow(number, "half of a surrogate pair, which no tokenizer can encode", lone)
    return _as_row(number, value)


def _as_row(number: int, value: Any) -> Row | BadRow:
    if not isinstance(value, dict):
        return BadRow(number, f"a {type(value).__name__} where an object is needed", repr(value)[:EXCERPT_CHARS])
    return value


def _lone_surrogate(value: Any) -> str:
    """The first string that is no valid Unicode (JSON may escape one half of a pair), cut short."""
    if isinstance(value, str):
        try:
            value.encode("utf-8")
        except UnicodeEncodeError:
            return ascii(value)[:EXCERPT_CHARS]
    elif isinstance(value, dict):
        return next(filter(None, map(_lone_surrogate, (*value.keys(), *value.values()))), "")
    elif isinstance(value, list):
        return next(filter(None, map(_lone_surrogate, value)), "")
    return ""


def _json_rows(path: Path) -> Iterator[tuple[int, Row | BadRow]]:
    try:
        values = json.loads(path.read_bytes())
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        if isinstance(error, json.JSONDecodeError) and error.msg == "Extra data":  # more rows follow a whole one
            yield from _jsonl_rows(path)
            return
        raise DataCardError(
            f"{path} is not JSON: {error}; a damaged file keeps its good rows only as .jsonl"
        ) from error
    if not isinstance(values, list):
        raise DataCardError(f"{path} holds a {type(values).__name__}; a list of objects is needed")
    for number, value in enumerate(values, start=1):
        yield number, _as_row(number, value)


def _csv_rows(path: Path) -> Iterator[tuple[int, Row | BadRow]]:
    csv.field_size_limit(sys.maxsize)  # a reasoning trace is longer than the 131,072 characters that csv allows
    with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as stream:
        for number, row in enumerate(csv.DictReader(stream), start=1):
            if None in row or None in row.values():
                reason = "another number of fields than the header has"
                yield number, BadRow(number, reason, ascii(row)[:EXCERPT_CHARS])
            elif lone := _lone_surrogate(row):  # a byte that does not decode was read as one
                yield number, BadRow(number, f"not UTF-8 ({_CONVERT})", lone)
            else:
                yield number, row


def _parquet_rows(path: Path) -> Iterator[tuple[int, Row | BadRow]]:
    import pyarrow
    import pyarrow.parquet

    try:
        batches = pyarrow.parquet.ParquetFile(path).iter_batches(batch_size=1024)
    except pyarrow.ArrowInvalid as error:
        raise DataCardError(f"{path} is no whole parquet file: {error}") from error
    number = 0
    try:
        for batch in batches:
            for row in batch.to_pylist():
                number += 1
                yield number, row
    except (OSError, pyarrow.ArrowException) as error:  # a damaged row group
        yield number + 1, BadRow(number + 1, f"the file cannot be read beyond this row ({error})", path.name)


@contextmanager
def atomic_open(path: str | Path) -> Iterator[IO[str]]:
    """Open a file for writing that appears under its name whole and synced to disk, or not at all."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        Path(temporary).chmod(0o644)  # mkstemp makes it private to the user
        Path(temporary).replace(path)
    except BaseException:
        with suppress(FileNotFoundError):
            Path(temporary).unlink()
        raise


def dump_row(row: Row) -> str:
    """One row as a JSON line; what JSON has no form for (a date of a parquet file) becomes text."""
    return json.dumps(row, ensure_ascii=False, default=str) + "\n"


def write_rows(path: str | Path, rows: Iterable[Row]) -> int:
    """Write rows as JSON lines, whole or not at all. Returns: how many."""
    count = 0
    with atomic_open(path) as stream:
        for row in rows:
            stream.write(dump_row(row))
            count += 1
    return count


def write_json(path: str | Path, value: Any) -> None:
    """Write one JSON document, whole or not at all."""
    with atomic_open(path) as stream:
        json.dump(value, stream, ensure_ascii=False, indent=1)
        stream.write("\n")
