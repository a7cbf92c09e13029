"""What a recipe may say about data: where rows come from, what is read of them, the prompt around a question."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from rlkd.recipe.base import Fraction, NonNegative, Positive, Section


class FieldRule(Section):
    """How one field is made from a row: a format string, the first group of an expression, replacements in order."""

    template: str = Field(description='e.g. "{body} {question}"')
    pattern: str | None = Field(default=None, description='e.g. "####\\\\s*(.+)"; a row it does not match is excluded')
    replace: dict[str, str] = Field(default_factory=dict, description='expression -> text, e.g. {"<<.*?>>": ""}')


def _as_rule(given: Any) -> Any:
    return {"template": given} if isinstance(given, str) else given


Rule = Annotated[FieldRule, BeforeValidator(_as_rule)]


class FieldMap(Section):
    """Row -> example. ``question`` and ``answer`` are needed; the rest is optional. A bare string is a template."""

    question: Rule = FieldRule(template="{question}")
    answer: Rule = FieldRule(template="{answer}")
    solution: Rule | None = None
    options: str | None = Field(default=None, description="column with {letter: text}, for multiple choice")
    extra: dict[str, Rule] = Field(default_factory=dict, description="further fields by name: privileged text, routes")


class ReasoningGymData(Section):
    """Procedurally generated problems with their own scorer (package reasoning-gym)."""

    kind: Literal["reasoning_gym"] = "reasoning_gym"
    task: str
    config: dict[str, Any] = Field(default_factory=dict, description="the task's own settings")
    size: Positive
    seed: NonNegative
    worked_share: Fraction = Field(
        default=1.0, description="share of the solutions that show their steps; the others only state the answer"
    )
    options: Annotated[int, Field(ge=2, le=10)] | Literal["sign"] | None = Field(
        default=None,
        description="makes each number a choice among so many near misses, or of its sign: {options} in data.prompt "
        "lists them, the answer is a letter",
    )
    card: str | None = "reasoning-gym"


class _Rows(Section):
    """Which rows of a table are used, and what their columns mean."""

    fields: FieldMap = FieldMap()
    start: NonNegative = 0
    stop: Positive | None = None
    card: str | None = None


class FileData(_Rows):
    """A local jsonl or parquet file; a relative path starts at ``data.dir`` or else at the recipe's folder."""

    kind: Literal["file"] = "file"
    path: str


class HubData(_Rows):
    """A dataset of the hub, pinned by revision."""

    kind: Literal["hub"] = "hub"
    path: str
    name: str | None = None
    split: str = "train"
    revision: str | None = None


class CardData(Section):
    """The rows of a data card, read as the card says; a local file starts at ``data.dir``, else at $RLKD_DATA_DIR."""

    kind: Literal["card"] = "card"
    name: str
    start: NonNegative = 0
    stop: Positive | None = None


DataSource = Annotated[ReasoningGymData | FileData | HubData | CardData, Field(discriminator="kind")]


def _as_list(given: Any) -> Any:
    return given if isinstance(given, list) or given is None else [given]


DataSources = Annotated[list[DataSource], BeforeValidator(_as_list), Field(min_length=1)]


class DataSpec(Section):
    """Training and held-out problems and the prompt around a question."""

    train: DataSources
    eval: DataSources | None = None
    dir: str | None = Field(default=None, description="folder that relative file paths start at")
    system: str | None = None
    prompt: str = Field(default="{question}", description="the user turn; {question} is replaced")
    thinking: bool | None = Field(default=None, description="the chat template's enable_thinking; default: unset")
    check_golds: bool = Field(default=True, description="exclude rows whose gold the verifier itself rejects")
