"""The shape that every step may rely on: a question, an answer that is text, traces with a text each."""

from __future__ import annotations

from typing import Any

from rlkd.data.curate.step import Removal
from rlkd.data.fields import text_of
from rlkd.data.rows import Row
from rlkd.errors import DataCardError

_HINT = "a card, or `reading` in a curation, says where it lies"


def shaped(row: Row) -> tuple[Row, tuple[Removal, ...]]:
    """The row in that shape, and the traces that have no text; bare strings are traces too.

    Raises: DataCardError when there is no question, or ``answer`` or ``traces`` is something else.
    """
    if not isinstance(row.get("question"), str) or not row["question"].strip():
        raise DataCardError(f"{_said(row, 'question')}, but a question is text; {_HINT}")
    row = {key: value for key, value in row.items() if value is not None or key not in ("id", "traces")}
    answer = row.get("answer")
    if isinstance(answer, (dict, list)):
        raise DataCardError(f"{_said(row, 'answer')}, but an answer is text or a number; {_HINT}")
    if answer is not None:
        row = {**row, "answer": text_of(answer)}
    if "traces" not in row:
        return row, ()
    if not isinstance(row["traces"], list):
        raise DataCardError(f"{_said(row, 'traces')}, but traces are a list; {_HINT}")
    traces = [{"text": each} if isinstance(each, str) else each for each in row["traces"]]
    bad = {at for at, each in enumerate(traces) if not isinstance(each, dict) or not isinstance(each.get("text"), str)}
    removals = tuple(Removal("trace without text", {"found": repr(traces[at])[:80]}, at) for at in sorted(bad))
    return {**row, "traces": [each for at, each in enumerate(traces) if at not in bad]}, removals


def _said(row: Row, key: str) -> str:
    if key not in row:
        return f"no field '{key}' (the row has {', '.join(map(str, row)) or 'none'})"
    value: Any = row[key]
    return f"'{key}' is {'empty' if value == '' else f'{type(value).__name__} {value!r}'[:60]}"
