"""Rows of a recipe's data sources as ``Example`` records; what cannot be used is excluded by reason and counted."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from rlkd.data.cards import DataCard, data_folder, load_card
from rlkd.data.reasoning_gym import load_reasoning_gym
from rlkd.data.rows import ENDINGS, BadRow, Row, read_rows
from rlkd.errors import DataCardError, RecipeError, did_you_mean
from rlkd.recipe.data import CardData, FieldMap, FieldRule, FileData, HubData, ReasoningGymData
from rlkd.records import Example

Source = ReasoningGymData | FileData | HubData | CardData
_PLACEHOLDER = re.compile(r"\{([^{}]+)\}")


@dataclass
class Loaded:
    """Examples in file order, and why rows were left out."""

    examples: list[Example] = field(default_factory=list)
    excluded: Counter[str] = field(default_factory=Counter)


def tokenizer_texts(examples: Iterable[Example]) -> Iterator[str]:
    """What a tokenizer of the recipe's own is trained on."""
    for example in examples:
        yield example.question
        yield example.solution or ""


def load_sources(sources: Sequence[Source], *, where: str, root: Path) -> Loaded:
    """Load and join all sources.

    Args:
        sources: the recipe's list.
        where: its dotted path, for errors.
        root: folder that relative file paths start at.

    Raises: RecipeError for files, columns or settings that do not exist, or when no usable row remains.
    """
    loaded = Loaded()
    for index, source in enumerate(sources):
        here = f"{where}.{index}" if len(sources) > 1 else where
        if isinstance(source, ReasoningGymData):
            loaded.examples += load_reasoning_gym(source, where=here)
        elif isinstance(source, CardData):
            _add_card(source, loaded, root)
        else:
            _add_rows(source, loaded, here, root)
    seen: set[str] = set()
    for example in loaded.examples:
        if example.id in seen:
            raise RecipeError(f"{where}: the id '{example.id}' occurs twice (the same file listed twice?)")
        seen.add(example.id)
    if not loaded.examples:
        raise RecipeError(f"{where}: no usable row; excluded: {dict(loaded.excluded)}")
    return loaded


def load_held_in(sources: Sequence[Source], held_out: Sequence[Example], *, where: str, root: Path) -> Loaded:
    """``load_sources`` without any question of ``held_out``: what is trained on is never evaluated on.

    Raises: RecipeError as ``load_sources``, or when nothing else remains.
    """
    loaded = load_sources(sources, where=where, root=root)
    questions = {example.question for example in held_out}
    fresh = [example for example in loaded.examples if example.question not in questions]
    if len(fresh) < len(loaded.examples):
        loaded.excluded["question also in data.eval"] = len(loaded.examples) - len(fresh)
        loaded.examples = fresh
    if not fresh:
        raise RecipeError(f"{where}: every question is also in data.eval; nothing would be held out")
    return loaded


def _rows(source: FileData | HubData, where: str, root: Path) -> Iterator[tuple[int, Row]]:
    """The rows from ``start`` to ``stop`` and their places, counted from 0."""
    if isinstance(source, HubData):
        found = _hub_rows(source, where)
        count = min(source.stop or len(found), len(found))
        if source.start < count:
            yield from enumerate(found.select(range(source.start, count)), source.start)
    else:
        count = 0
        for row in _file_rows(source, where, root):
            if count >= source.start:
                yield count, row
            count += 1
    if source.start >= count:
        raise RecipeError(
            f"{where}.start: {source.start}, but there are {count} rows{' up to stop' if source.stop else ''}"
        )


def _hub_rows(source: HubData, where: str) -> Any:
    import datasets

    try:
        return datasets.load_dataset(source.path, source.name, split=source.split, revision=source.revision)
    except Exception as error:
        raise RecipeError(f"{where}.path: hub dataset '{source.path}' cannot be read: {error}") from error


def _file_rows(source: FileData, where: str, root: Path) -> Iterator[Row]:
    path = source_file(source.path, where, root)
    try:
        for _, row in islice(read_rows(path), source.stop):
            if isinstance(row, BadRow):
                raise RecipeError(f"{where}.path: {path} cannot be read: {row}")
            yield row
    except DataCardError as error:
        raise RecipeError(f"{where}.path: {path} cannot be read: {error}") from error


def source_file(named: str, where: str, root: Path) -> Path:
    """The file of a section's ``path``. Raises: RecipeError when it is not there, empty, or of a kind not read."""
    path = Path(named).expanduser()
    path = path if path.is_absolute() else root / path
    if path.is_dir():
        raise RecipeError(f"{where}.path: {path} is a folder; name a file in it")
    if not path.is_file():
        near = did_you_mean(path.name, [p.name for p in path.parent.glob("*")] if path.parent.is_dir() else [])
        raise RecipeError(f"{where}.path: there is no file {path}{near}; relative paths start at data.dir")
    if not path.name.endswith(ENDINGS):
        raise RecipeError(f"{where}.path: '{path.suffix}' is not read; accepted: {', '.join(ENDINGS)}")
    if not path.stat().st_size:
        raise RecipeError(f"{where}.path: {path} is empty")
    return path


def card_folder(card: DataCard, root: Path) -> Path:
    """Where a card's file is: ``data.dir``, else the folder of all data."""
    return root if card.source.file and (root / card.source.file).is_file() else data_folder()


def _add_card(source: CardData, loaded: Loaded, root: Path) -> None:
    """Rows as their card reads them; a damaged row, or one without an answer, is counted."""
    card = load_card(source.name)
    if card.source.file is None:
        raise DataCardError(f"card '{card.name}' names no local file; write kind: hub with path {card.source.hub}")
    for number, row in islice(card.rows(card_folder(card, root)), source.start, source.stop):
        if isinstance(row, BadRow):
            loaded.excluded[row.reason] += 1
            continue
        try:
            found = card.example(row)
        except DataCardError as error:
            loaded.excluded[str(error)[:80]] += 1
            continue
        fields = {key: value for key, value in found.items() if key not in ("id", "question", "answer", "traces")}
        # A trace that its publisher calls wrong is nothing to fine-tune on.
        solution = next((t["text"] for t in found.get("traces", ()) if t.get("claim") is not False), None)
        identity = f"{card.name}-{found.get('id', number)}"
        loaded.examples.append(Example(identity, found["question"], found["answer"], solution, fields))


def _add_rows(source: FileData | HubData, loaded: Loaded, where: str, root: Path) -> None:
    stem = Path(source.path).stem
    columns: dict[str, None] = {}  # of all rows: one may lack what another has
    for index, row in _rows(source, where, root):
        columns.update(dict.fromkeys(row))
        example, reason = _example(source.fields, row, f"{stem}-{index}")
        if example is None:
            loaded.excluded[reason] += 1
        else:
            loaded.examples.append(example)
    _check_columns(source.fields, columns, where)


def _check_columns(fields: FieldMap, columns: Iterable[str], where: str) -> None:
    known = list(columns)
    for name in ("question", "answer", "solution"):
        rule: FieldRule | None = getattr(fields, name)
        columns_named = _PLACEHOLDER.findall(rule.template) if rule else []
        if rule and not columns_named:
            nearest = rule.template if rule.template in known else next(iter(known), name)
            raise RecipeError(
                f"{where}.fields.{name}: {rule.template!r} names no column, so that every row would be alike; write "
                f"'{{{nearest}}}'; columns: {', '.join(known)}"
            )
        for column in columns_named:
            if column not in known:
                raise RecipeError(
                    f"{where}.fields.{name}: the data has no column '{column}'{did_you_mean(column, known)}; "
                    f"columns: {', '.join(known)}"
                )
    for name, rule in fields.extra.items():
        for column in _PLACEHOLDER.findall(rule.template):
            if column not in known:
                raise RecipeError(
                    f"{where}.fields.extra.{name}: the data has no column '{column}'{did_you_mean(column, known)}; "
                    f"columns: {', '.join(known)}"
                )
    if fields.options and fields.options not in known:
        raise RecipeError(f"{where}.fields.options: the data has no column '{fields.options}'; columns: {known}")


def _example(fields: FieldMap, row: Mapping[str, Any], row_id: str) -> tuple[Example | None, str]:
    question = _apply(fields.question, row)
    answer = _apply(fields.answer, row)
    solution = _apply(fields.solution, row) if fields.solution else None
    if not question:
        return None, "empty question"
    if not answer:
        return None, "empty answer"
    if fields.solution and not solution:
        return None, "empty solution"
    options = {"options": row.get(fields.options)} if fields.options else {}
    extra = {name: _apply(rule, row) for name, rule in fields.extra.items()}  # an absent one is its reader's business
    return Example(id=row_id, question=question, answer=answer, solution=solution, fields=options | extra), ""


def _apply(rule: FieldRule, row: Mapping[str, Any]) -> str | None:
    """Fill the template; None when a column is null or the pattern does not match."""
    if any(row.get(column) is None for column in _PLACEHOLDER.findall(rule.template)):
        return None
    text = _PLACEHOLDER.sub(lambda found: str(row[found[1]]), rule.template)  # once: a row's own braces stay
    if rule.pattern is not None:
        found = re.search(rule.pattern, text, re.DOTALL)
        if found is None:
            return None
        text = found.group(1) if found.groups() else found.group(0)
    for expression, replacement in rule.replace.items():
        text = re.sub(expression, replacement, text)
    return text.strip()
