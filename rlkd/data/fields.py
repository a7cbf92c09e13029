"""From a raw row's fields to text: dotted look-ups, ``{field}`` templates and answer rules."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict, model_validator

from rlkd.errors import DataCardError, did_you_mean

# Braces around a name only, so that \boxed{} in a template stays as it is.
_PLACEHOLDER = re.compile(r"\{([A-Za-z0-9_]+(?:\.[A-Za-z0-9_]+)*)\}")
_UNIT_IN_BRACKETS = re.compile(r"\s*\([^()]*[^\W\d][^()]*\)\s*$")  # has a letter: "-(1/3)" is no unit
_MISSING = object()


def lookup(row: Mapping[str, Any], key: str, default: Any = _MISSING) -> Any:
    """The value under a dotted key, list positions included (``solutions.0``). Raises: DataCardError when missing."""
    value: Any = row
    for part in key.split("."):
        if isinstance(value, Mapping) and part in value:
            value = value[part]
        elif isinstance(value, list) and part.isdecimal() and int(part) < len(value):
            value = value[int(part)]
        elif default is not _MISSING:
            return default
        else:
            known = [str(name) for name in value] if isinstance(value, Mapping) else []
            raise DataCardError(f"no field '{key}'{did_you_mean(part, known)}; the row has {known or type(value)}")
    return value


def text_of(value: Any) -> str:
    """A value as text; an integral float loses its ``.0`` (27.0 is how JSON writers store the answer 27)."""
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return str(value)


_CLAIMS = {"true": True, "yes": True, "1": True, "1.0": True, "false": False, "no": False, "0": False, "0.0": False}


def as_claim(value: Any, where: str) -> bool | None:
    """Is it called right? true/false, 1/0 and yes/no as values or text in any case; null or empty text: not said.

    Raises: DataCardError, beginning with ``where``, for anything else.
    """
    text = "" if value is None else str(value).strip().lower()
    if text in ("", "null", "none"):
        return None
    if text not in _CLAIMS:
        raise DataCardError(f"{where}: {value!r} says neither right nor wrong; write true, false or null")
    return _CLAIMS[text]


def render(template: str, row: Mapping[str, Any]) -> str:
    """Fill ``{field}`` places with the row's text. Raises: DataCardError when one is missing or null."""

    def fill(match: re.Match[str]) -> str:
        value = lookup(row, match[1])
        if value is None:
            raise DataCardError(f"field '{match[1]}' is null")
        return text_of(value)

    return _PLACEHOLDER.sub(fill, template)


class AnswerRule(BaseModel):
    """Where a row's gold answer lies. Steps apply in the order of the fields below."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    field: str
    after: str | None = None  # what follows the last such marker, e.g. "####"
    boxed: bool = False  # the content of the last \boxed{}
    drop_unit: bool = False  # "9 (apples)" -> "9"

    @model_validator(mode="after")
    def _one_way(self) -> AnswerRule:
        if self.after is not None and self.boxed:
            raise ValueError("give 'after' or 'boxed', not both")
        return self

    def extract(self, row: Mapping[str, Any]) -> str:
        """The gold of a row. Raises: DataCardError when the marker or the box is not there, or nothing is left."""
        value = lookup(row, self.field)
        if value is None:
            raise DataCardError(f"answer field '{self.field}' is null")
        text = text_of(value)
        if self.after is not None:
            _, marker, text = text.rpartition(self.after)
            if not marker:
                raise DataCardError(f"answer field '{self.field}' has no '{self.after}'")
        if self.boxed:
            text = last_boxed(text)
        text = text.strip()
        if self.drop_unit:
            text = _UNIT_IN_BRACKETS.sub("", text)
        if not text:
            raise DataCardError(f"answer field '{self.field}' is empty")
        return text


def last_boxed(text: str) -> str:
    """The content of the last ``\\boxed{...}`` with balanced braces. Raises: DataCardError when there is none."""
    start = text.rfind("\\boxed{")
    if start < 0:
        raise DataCardError("no \\boxed{} in the answer field")
    begin = start + len("\\boxed{")
    depth, position = 1, begin
    while position < len(text):
        if text[position] == "\\":
            position += 2  # the character after a backslash is no brace
            continue
        depth += (text[position] == "{") - (text[position] == "}")
        if depth == 0:
            return text[begin:position]
        position += 1
    raise DataCardError("the last \\boxed{ is never closed (a truncated solution?)")
