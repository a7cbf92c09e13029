"""The one pydantic base of every recipe section, and the numbers and texts that many of them take."""

from __future__ import annotations

import re
from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field


def _folder_name(given: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9_-][A-Za-z0-9._-]*", given):
        raise ValueError(f"'{given}' names a folder; use letters, digits, '.', '_' and '-', no '.' first")
    return given


def _url(given: str) -> str:
    if not re.match(r"https?://[^/]", given):
        raise ValueError(f"given '{given}'; write the server's base with its scheme, such as http://host:8000/v1")
    return given


Positive = Annotated[int, Field(gt=0)]
NonNegative = Annotated[int, Field(ge=0)]
Fraction = Annotated[float, Field(ge=0, le=1)]
FolderName = Annotated[str, AfterValidator(_folder_name)]
Url = Annotated[str, AfterValidator(_url)]


class Section(BaseModel):
    """Strict (no coercion), frozen, no unknown keys, defaults validated."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, validate_default=True, allow_inf_nan=False)
