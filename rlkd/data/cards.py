"""Data cards: what a dataset is, where it comes from, and how one raw row becomes a training example."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from rlkd.data.fields import AnswerRule, as_claim, lookup, render, text_of
from rlkd.data.rows import BadRow, Row, read_rows
from rlkd.errors import DataCardError, did_you_mean

Origin = Literal["measured", "paper", "publisher", "not measured: hub unreachable", "procedural: unlimited"]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Source(_Part):
    """Where the rows come from. A hub revision that is not known is null, and ``revision_note`` says why."""

    url: str
    hub: str | None = None
    config: str | None = None
    revision: str | None = None
    revision_note: str | None = None
    file: str | None = Field(default=None, description="relative to the data folder, never a path of one machine")
    licence: str
    evaluation_only: bool = False

    @model_validator(mode="after")
    def _says_where(self) -> Source:
        if self.file is not None and (Path(self.file).is_absolute() or ".." in Path(self.file).parts):
            raise ValueError(f"file '{self.file}' must be relative to the data folder")
        if self.hub is not None and self.revision is None and not self.revision_note:
            raise ValueError("revision is null: revision_note must say why")
        return self


class FieldSpec(_Part):
    """One column of the raw rows."""

    name: str
    type: Literal["str", "int", "float", "number", "bool", "list", "dict", "any"]
    optional: bool = False
    meaning: str = ""


class Split(_Part):
    """One split and its size. An unknown size is null and its origin says so."""

    name: str
    rows: int | None
    origin: Origin
    note: str = ""

    @model_validator(mode="after")
    def _known_or_said(self) -> Split:
        unknown = self.origin.startswith(("not measured", "procedural"))
        if (self.rows is None) != unknown:
            raise ValueError(f"rows={self.rows} does not go with origin '{self.origin}'")
        return self


class Rewrite(_Part):
    """A regular expression and what replaces each match, for markup that no model should learn."""

    pattern: str
    to: str

    @model_validator(mode="after")
    def _compiles(self) -> Rewrite:
        try:
            re.compile(self.pattern)
        except re.error as error:
            raise ValueError(f"pattern {self.pattern!r}: {error}") from error
        return self


class TraceRule(_Part):
    """Where a solution of the row lies: its text, who wrote it, and what the publisher claims about it.

    A field that holds a list gives one trace an item; the claim is then a list beside it, or null for all of them.
    """

    text: str
    model: str
    claim: str | None = Field(default=None, description="does the publisher call this trace right?")
    rewrite: tuple[Rewrite, ...] = ()


class Reading(_Part):
    """How a raw row becomes an example: ``{field}`` templates and an answer rule."""

    id: str | None = None
    question: str
    answer: AnswerRule
    options: str | None = None
    traces: tuple[TraceRule, ...] = ()
    keep: tuple[str, ...] = Field(default=(), description="raw fields that the verifier needs, kept under their names")

    def example(self, row: Row) -> Row:
        """The row as ``{question, answer, [id], [options], [traces], kept fields}``. Raises: DataCardError."""
        example: Row = {key: lookup(row, key) for key in self.keep}
        example |= {"question": render(self.question, row), "answer": self.answer.extract(row)}
        if self.id is not None:
            example["id"] = text_of(lookup(row, self.id))
        if self.options is not None:
            example["options"] = lookup(row, self.options)
        if self.traces:
            example["traces"] = [trace for rule in self.traces for trace in _traces(rule, row)]
        return example


class Decontamination(_Part):
    """What was done by the publisher, and which cards ours must be checked against before training."""

    published: str
    check_against: tuple[str, ...] = ()


class Fault(_Part):
    """A fault of the published rows that a user has to know."""

    what: str
    origin: str


class DataCard(_Part):
    """One dataset. Recipes name cards; ``rlkd data check`` holds a card against its rows."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9_.-]*$")
    title: str
    use: Literal["train", "eval", "both"]
    task: Literal["math", "multiple_choice", "code", "procedural"]
    source: Source
    fields: tuple[FieldSpec, ...]
    splits: tuple[Split, ...]
    reading: Reading
    prompt_template: str
    verifier: str | dict[str, Any]
    decontamination: Decontamination
    known_faults: tuple[Fault, ...] = ()
    numbers: str = Field(description="how the numbers of this card were obtained")

    @model_validator(mode="after")
    def _template_uses_question(self) -> DataCard:
        if "{question}" not in self.prompt_template:
            raise ValueError("prompt_template must contain {question}")
        return self

    def path(self, data_dir: str | Path | None = None) -> Path:
        """The local file. Raises: DataCardError when the card names none or it is not there."""
        if self.source.file is None:
            hub = f"; load it from the hub as {self.source.hub}" if self.source.hub else ""
            raise DataCardError(f"card '{self.name}' names no local file{hub}")
        path = data_folder(data_dir) / self.source.file
        if not path.is_file():
            raise DataCardError(f"card '{self.name}': no file {path}; set RLKD_DATA_DIR to the folder that holds it")
        return path

    def rows(
        self, data_dir: str | Path | None = None, *, split: str | None = None
    ) -> Iterator[tuple[int, Row | BadRow]]:
        """Raw rows, numbered from 1: of the local file where the card names one, else streamed from the hub."""
        if self.source.file is not None:
            return read_rows(self.path(data_dir))
        return self._hub_rows(split or self.splits[0].name)

    def _hub_rows(self, split: str) -> Iterator[tuple[int, Row | BadRow]]:
        if self.source.hub is None:
            raise DataCardError(f"card '{self.name}' has neither a local file nor a hub dataset: {self.source.url}")
        import datasets

        source = self.source
        try:
            stream = datasets.load_dataset(
                source.hub, source.config, split=split, revision=source.revision, streaming=True
            )
            for number, row in enumerate(stream, start=1):
                yield number, dict(row)
        except (OSError, ValueError) as error:  # huggingface_hub's errors derive from these
            raise DataCardError(
                f"card '{self.name}': the hub gave no rows of {source.hub} ({split}): {error}; "
                "check the network, or download the file and name it under source.file"
            ) from error

    def example(self, row: Row) -> Row:
        """The row as its ``reading`` says."""
        return self.reading.example(row)

    def prompt(self, example: Mapping[str, Any]) -> str:
        """The user's message for an example, options listed where there are some."""
        options = example.get("options")
        listed = "\n".join(f"{letter}. {text}" for letter, text in options.items()) if options else ""
        return render(self.prompt_template, {**example, "options": listed}).strip()


def _traces(rule: TraceRule, row: Row) -> Iterator[Row]:
    found = lookup(row, rule.text, default=None)
    claims = lookup(row, rule.claim, default=None) if rule.claim is not None else None
    if found is None:
        return  # as below; what is claimed of it is of no use
    texts = found if isinstance(found, list) else [found]
    claimed = [None] * len(texts) if claims is None else claims if isinstance(claims, list) else [claims]
    if len(claimed) != len(texts):
        raise DataCardError(f"{len(texts)} traces under '{rule.text}' but {len(claimed)} claims under '{rule.claim}'")
    for text, claim in zip(texts, claimed, strict=True):
        if not isinstance(text, str):
            continue  # a model that gave no answer; the row's other traces stay
        for rewrite in rule.rewrite:
            text = re.sub(rewrite.pattern, rewrite.to, text)
        said = {} if rule.claim is None else {"claim": as_claim(claim, f"field '{rule.claim}'")}
        yield {"text": text, "model": rule.model, **said}


def data_folder(data_dir: str | Path | None = None) -> Path:
    """The folder of local files: the argument, $RLKD_DATA_DIR, $RLKD_SHARED/data, or ../shared/data."""
    if data_dir is not None:
        return Path(data_dir)
    if folder := os.environ.get("RLKD_DATA_DIR"):
        return Path(folder)
    if shared := os.environ.get("RLKD_SHARED"):
        return Path(shared) / "data"
    return _repository() / ".." / "shared" / "data"


def _repository() -> Path:
    return Path(__file__).resolve().parents[2]


def cards_folder() -> Path:
    """The folder of the shipped cards; $RLKD_CARDS_DIR names another one."""
    return Path(os.environ.get("RLKD_CARDS_DIR") or _repository() / "data_cards")


def card_names(folder: str | Path | None = None) -> list[str]:
    """Names of all cards in a folder."""
    return sorted(path.stem for path in Path(folder or cards_folder()).glob("*.yaml"))


def load_card(name: str | Path, folder: str | Path | None = None) -> DataCard:
    """Load a card by name or by the path of its YAML file. Raises: DataCardError, naming each bad key."""
    path = Path(name)
    if path.is_file() and path.suffix in (".jsonl", ".json", ".gz", ".parquet"):
        raise DataCardError(f"{path} is a data file, not a card; write a card for it (see data_cards/), or curate it")
    if path.suffix not in (".yaml", ".yml"):
        path = Path(folder or cards_folder()) / f"{name}.yaml"
    if not path.is_file():
        known = card_names(folder)
        raise DataCardError(f"no data card '{name}'{did_you_mean(str(name), known)}; known: {', '.join(known)}")
    try:
        raw = yaml.safe_load(path.read_text("utf-8"))
        if isinstance(raw, dict) and {"policy", "data"} <= raw.keys():
            raise DataCardError(f"{path} is a recipe, not a data card; `rlkd validate {path}` looks at recipes")
        card = DataCard.model_validate(raw)
    except yaml.YAMLError as error:
        raise DataCardError(f"{path.name} is not YAML: {error}") from error
    except ValidationError as error:
        lines = [f"  {'.'.join(map(str, item['loc'])) or 'card'}: {item['msg']}" for item in error.errors()]
        raise DataCardError(f"{path.name} is not a data card:\n" + "\n".join(lines)) from error
    if card.name != path.stem:
        raise DataCardError(f"{path.name} holds the card '{card.name}'; name and file name must agree")
    return card
