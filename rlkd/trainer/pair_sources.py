"""Pairs of an offline stage: from a file, a data card's traces or fresh samples, to token ids in the stage's folder."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path

from rlkd.checkpoint import read_json, write_json
from rlkd.data.cards import load_card
from rlkd.data.chat import encode
from rlkd.data.curate.where import WhereFilter
from rlkd.data.pairs import PairSettings, build_pairs, trace_rows
from rlkd.data.rows import BadRow, Row, atomic_open, dump_row, read_rows
from rlkd.data.source import card_folder, source_file
from rlkd.errors import DataCardError, RecipeError
from rlkd.recipe import Recipe
from rlkd.recipe.offline import CardPairs, FilePairs
from rlkd.recipe.offline_checks import offline_stages
from rlkd.recipe.schema import OfflineStage
from rlkd.records import Example
from rlkd.trainer.context import Run
from rlkd.trainer.pair_file import Pair, PairFile, PairReport
from rlkd.trainer.sampled_pairs import sampled_pairs

_NEEDED = ("question", "chosen", "rejected")


# ---------------------------------------------------------------- before anything starts


def check_sources(recipe: Recipe, root: Path) -> None:
    """Raises: RecipeError or DataCardError when a stage's file or card is not there or holds no traces."""
    for index, stage in offline_stages(recipe):
        where = f"stages.{index}.pairs"
        if isinstance(stage.pairs, FilePairs):
            path = source_file(stage.pairs.path, where, root)
            first = next((row for _, row in read_rows(path) if not isinstance(row, BadRow)), None)
            missing = [name for name in _NEEDED if name not in (first or {})]
            if missing:
                raise RecipeError(
                    f"{where}.path: {path} has no column {', '.join(missing)}; `rlkd data pairs` writes such files"
                )
        elif isinstance(stage.pairs, CardPairs):
            card = load_card(stage.pairs.name)
            if not card.reading.traces:
                raise RecipeError(f"{where}.name: card '{card.name}' names no traces (reading.traces)")
            if card.source.file is not None:
                card.path(card_folder(card, root))


# ---------------------------------------------------------------- gathering


def gather_pairs(run: Run, stage: OfflineStage, place: Path, *, models: dict[str, Path], root: Path) -> PairFile:
    """The stage's pairs. They are gathered once; a stage that goes on finds them in its folder.

    Args:
        place: the stage's folder; ``pairs.jsonl`` and ``pairs.json`` (counts) are written there.
        models: the model folders that traces may be sampled from.
        root: folder that relative paths start at.

    Raises: RecipeError when none is left, with the count of every reason.
    """
    target, counts = place / "pairs.jsonl", place / "pairs.json"
    if target.is_file():
        found = PairReport(**read_json(counts))
        run.abstained += found.abstained
    else:
        found = _gather(run, stage, place, models, root)
    run.tokens["generated"] += found.generated
    pairs = PairFile(target)
    run.console.status(f"{stage.name}: {len(pairs):,} pairs of a right and a wrong trace")
    return pairs


def _gather(run: Run, stage: OfflineStage, place: Path, models: dict[str, Path], root: Path) -> PairReport:
    report, parts = PairReport(), place / "sampled"
    if isinstance(stage.pairs, FilePairs):
        found = _text_pairs(run, source_file(stage.pairs.path, f"stages.{stage.name}.pairs", root), report)
    elif isinstance(stage.pairs, CardPairs):
        found = _card_pairs(run, stage, stage.pairs, place / "judged", report, root)
    else:
        found = sampled_pairs(run, stage, stage.pairs, parts, report, models)
    with atomic_open(place / "pairs.jsonl") as stream:
        for pair in _usable(found, stage, {prompt.example.question for prompt in run.eval_prompts}, report):
            stream.write(dump_row(dataclasses.asdict(pair)))
            report.kept += 1
        _tell(run, stage, report)
        if not report.kept:
            raise RecipeError(f"stages.{stage.name}.pairs: no pair is left; left out: {dict(report.excluded)}")
        write_json(place / "pairs.json", vars(report))  # first: where there are pairs, there are counts
    shutil.rmtree(parts, ignore_errors=True)
    return report


def _tell(run: Run, stage: OfflineStage, report: PairReport) -> None:
    if report.traces:
        counts = ", ".join(f"{count:,} {name}" for name, count in report.traces.items())
        run.console.status(f"{stage.name}: traces: {counts}")
    for reason, count in report.excluded.items():
        run.console.note(f"stages.{stage.name}.pairs: {count} left out: {reason}")


def _usable(pairs: Iterable[Pair], stage: OfflineStage, held_out: set[str], report: PairReport) -> Iterator[Pair]:
    for pair in pairs:
        reason = _fault(pair, stage, held_out)
        if reason:
            report.excluded[reason] += 1
        else:
            yield pair


def _fault(pair: Pair, stage: OfflineStage, held_out: set[str]) -> str:
    if pair.question in held_out:
        return "question also in data.eval"
    if len(pair.prompt_ids) > stage.max_prompt_tokens:
        return f"prompt longer than max_prompt_tokens {stage.max_prompt_tokens}"
    if max(len(pair.right_ids), len(pair.wrong_ids)) > stage.max_response_tokens:
        return f"a trace longer than max_response_tokens {stage.max_response_tokens}"
    return "right and wrong trace are the same tokens" if pair.right_ids == pair.wrong_ids else ""


# ---------------------------------------------------------------- text


def _text_pairs(run: Run, path: Path, report: PairReport) -> Iterator[Pair]:
    """Rows as ``rlkd data pairs`` writes them; a damaged row is counted."""
    for number, row in read_rows(path):
        if isinstance(row, BadRow):
            report.excluded[row.reason] += 1
        elif not all(isinstance(row.get(name), str) and row[name].strip() for name in _NEEDED):
            report.excluded[f"no text under one of {', '.join(_NEEDED)}"] += 1
        else:
            yield _text_pair(run, row, str(row.get("id", f"{path.stem}-{number}")))


def _text_pair(run: Run, row: Row, identity: str) -> Pair:
    fields = {key: value for key, value in row.items() if key not in ("id", "answer", *_NEEDED)}
    example = Example(identity, row["question"], row.get("answer"), None, fields)
    prompt = run.builder.prompt(example)

    def ids(text: str) -> tuple[int, ...]:
        return run.builder.completion_ids(dataclasses.replace(example, solution=text), prompt)

    return Pair(identity, example.question, prompt.token_ids, ids(row["chosen"]), ids(row["rejected"]))


def _card_pairs(
    run: Run, stage: OfflineStage, spec: CardPairs, out: Path, report: PairReport, root: Path
) -> Iterator[Pair]:
    """A card's traces, judged part by part: a killed run goes on at the part where it stopped."""
    card, verifier = load_card(spec.name), run.recipe.verifier
    keep, drop = ({key: tuple(values) for key, values in chosen.items()} for chosen in (spec.keep, spec.drop))
    try:
        found = build_pairs(
            trace_rows(card, card_folder(card, root)),
            out,
            card=card,
            verify_batch=run.pool.verify_batch,
            verifier={"name": verifier.kind, **verifier.options},
            label=spec.label,
            filters=[WhereFilter(keep=keep, drop=drop)] if keep or drop else [],
            settings=PairSettings(
                max_response=max(1, stage.max_response_tokens - 1),  # one is the end-of-turn token
                pairs_per_problem=spec.pairs_per_problem,
            ),
            token_counter=lambda text: len(encode(run.tokenizer, text)),
        )
    except DataCardError as error:
        raise RecipeError(f"stages.{stage.name}.pairs: {error}") from error
    for line in found.lines():
        run.console.status(f"{stage.name}: {line}")
    report.traces.update(found.traces)
    return _text_pairs(run, out / "pairs.jsonl", report)
