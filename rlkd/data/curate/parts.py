"""Models and functions that the steps of a curation take: looked for when it begins, loaded by the first call."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence, Set
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from rlkd.data.chat import encode
from rlkd.data.chat import render as render_chat
from rlkd.data.curate.run import identity
from rlkd.data.curate.step import STEPS, Step, build_step
from rlkd.data.fields import render
from rlkd.data.rows import Row, good_rows
from rlkd.data.text import text_key
from rlkd.errors import DataCardError, RlkdError

if TYPE_CHECKING:
    from rlkd.data.curate.spec import CurationSpec, Server


class Part(NamedTuple):
    """A model or function for steps, and what it is: a run that goes on must have the same."""

    name: Any
    make: Callable[[], Any]


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
        _build(each, parts.get(str(each.get("step")), given), type(spec).model_fields.keys(), f"steps.{number}")
        for number, each in enumerate(spec.steps)
    ]


_LINES = {
    "scorer": "teacher: MODEL",
    "teacher": "teacher: MODEL",
    "student": "student: MODEL",
    "token_offsets": "student: MODEL",
    "pass_rate": "pass_rates: FILE, as `rlkd eval` writes it",
    "sampler": "server: {base_url: URL, model: NAME}",
}
_SERVED_LINES = {"teacher": _LINES["sampler"], "student": f"student_{_LINES['sampler']}"}


def needed_lines(kind: str) -> dict[str, str]:
    """The parts that a step cannot do without, each with the line of the curation that gives it."""
    lines = _LINES | (_SERVED_LINES if kind == "mixed_policy" else {})
    return {key: lines[key] for key, field in STEPS[kind].model_fields.items() if field.exclude and field.is_required()}


def _build(given: dict[str, Any], parts: Mapping[str, Part | None], lines: Set[str], where: str) -> Step:
    kind = given.get("step")
    try:
        fields = STEPS[kind].model_fields if isinstance(kind, str) else {}
        taken = {key: part for key, part in parts.items() if key in fields and part is not None}
        for key in given.keys() & lines - {each for each in fields if not fields[each].exclude}:
            raise DataCardError(f"'{key}' is a line of the curation, not of a step")
        for key, line in needed_lines(str(kind)).items() if fields else ():
            if key not in taken:
                raise DataCardError(f"step '{kind}' needs a line of the curation: {line}")
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
        server.base_url,
        server.model,
        key_variable=server.key_variable,
        concurrency=server.concurrency,
        rendered=server.tokenizer is not None,
    )


def _pass_rates(path: str) -> Callable[[Sequence[Row]], list[float | None]]:
    """Rates by id. A row of another question than the rate's is no row without a rate but a mistake."""
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
        for row, found in zip(rows, known, strict=True):
            if found is not None and found[1] not in (None, text_key(row["question"])):
                raise DataCardError(
                    f"pass_rates: {path} has another question under id {row['id']!r} than row {row['row']}; "
                    "was it measured on other rows, or do ids repeat?"
                )
        return [None if found is None else found[0] for found in known]

    return rate
