"""A curation written down: rows, steps and the models that they need, as one YAML file (see this folder's README)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from rlkd.data.cards import DataCard, Reading, load_card
from rlkd.data.curate.parts import Part, build_steps
from rlkd.data.curate.report import StepReport
from rlkd.data.curate.run import card_identity, curate
from rlkd.data.curate.step import validation_lines
from rlkd.errors import DataCardError
from rlkd.recipe.base import Url


class Server(BaseModel):
    """An OpenAI-compatible completions server; the key comes from an environment variable."""

    model_config = ConfigDict(extra="forbid")
    base_url: Url
    model: str
    tokenizer: str | None = Field(default=None, description="renders prompts by its chat template; none: plain text")
    key_variable: str = "OPENAI_API_KEY"
    concurrency: int = Field(default=16, ge=1)


class CurationSpec(BaseModel):
    """One curation. Models are loaded only when a step asks for them."""

    model_config = ConfigDict(extra="forbid")
    card: str | None = None
    source: str | list[str] | None = None
    reading: Reading | None = None
    data_dir: str | None = None
    prompt: str = "{question}"
    student: str | None = None
    teacher: str | None = None
    verifier: str | dict[str, Any] | None = None
    embedding: bool = False
    pass_rates: str | None = None
    server: Server | None = None
    student_server: Server | None = None
    part_rows: int = Field(default=10_000, ge=1)
    steps: list[dict[str, Any]]

    @field_validator("steps", mode="before")
    @classmethod
    def _names_are_steps(cls, given: Any) -> Any:
        return (
            [{"step": each} if isinstance(each, str) else each for each in given] if isinstance(given, list) else given
        )

    @model_validator(mode="after")
    def _has_rows(self) -> CurationSpec:
        if self.card is None and self.source is None:
            raise ValueError("name the rows: card or source (or both: the card says how to read the file)")
        if self.card is not None and self.reading is not None:
            raise ValueError("the card says how rows are read; leave out reading, or the card")
        return self


def load_spec(path: str | Path) -> CurationSpec:
    """Read a curation from YAML. Raises: DataCardError that names what is wrong."""
    try:
        given = yaml.safe_load(Path(path).read_text("utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise DataCardError(f"{path} cannot be read: {error}") from error
    if not isinstance(given, dict):
        raise DataCardError(f"{path} is not a curation: it holds no keys; write source: FILE and steps: [...]")
    try:
        return CurationSpec.model_validate(given)
    except ValidationError as error:
        lines = [f"  {line}" for line in validation_lines(error, CurationSpec)]
        raise DataCardError(f"{path} is not a curation:\n" + "\n".join(lines)) from error


def run_spec(
    spec: CurationSpec, out: str | Path, progress: Callable[[StepReport], None] | None = None
) -> list[StepReport]:
    """Run a curation; called again, it goes on where it stopped."""
    card = load_card(spec.card) if spec.card else None
    reading = card.reading if card else spec.reading
    with _verifier(spec, card) as verifier:
        steps = build_steps(spec, Path(out) / "models", verifier)
        source = spec.source if spec.source is not None else _card_rows(spec, card)
        rows_from = card_identity(card, spec.data_dir) if card and spec.source is None else None
        return curate(
            source, steps, out, reading=reading, part_rows=spec.part_rows, progress=progress, rows_from=rows_from
        )


def _card_rows(spec: CurationSpec, card: DataCard | None) -> Any:
    assert card is not None  # the spec has one of the two
    return card.path(spec.data_dir) if card.source.file is not None else (row for _, row in card.rows())


@contextmanager
def _verifier(spec: CurationSpec, card: DataCard | None) -> Iterator[Part | None]:
    """The verifier's processes, when a step asks them."""
    kind = spec.verifier or (card.verifier if card else None)
    if kind is None or not any(each.get("step") == "label_traces" for each in spec.steps):
        yield None
        return
    from reward.pool import VerifierPool

    with VerifierPool(kind) as pool:
        yield Part(kind, lambda: pool.verify_batch)
