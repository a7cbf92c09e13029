"""``rlkd data ...``: cards, checks, pairs and curation. Heavy libraries are imported by the command that needs them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from pydantic.fields import FieldInfo

app = typer.Typer(no_args_is_help=True, help="Data cards, checks, pairs and curation.")

DataDir = Annotated[Path | None, typer.Option(help="folder of local files; default $RLKD_DATA_DIR")]
ModelCache = Annotated[Path, typer.Option(help="where models from packages are converted to")]
CACHE = Path.home() / ".cache" / "rlkd" / "models"


@app.command("cards")
def cards() -> None:
    """List the data cards."""
    from rlkd.data.cards import card_names, load_card

    for name in card_names():
        card = load_card(name)
        size = ", ".join(f"{split.name} {split.rows if split.rows is not None else '?'}" for split in card.splits)
        where = "local file" if card.source.file else card.source.hub or card.source.url
        typer.echo(f"{name:24} {card.use:6} {size:16} {where:44} {card.title}")


@app.command("steps")
def steps() -> None:
    """List the curation steps with their settings, and the lines of the curation that they need."""
    from rlkd.data.curate import STEPS
    from rlkd.data.curate.parts import needed_lines

    for name in STEPS:
        step = STEPS[name]
        settings = [_setting(key, field) for key, field in step.model_fields.items() if not field.exclude]
        needs = list(needed_lines(name).values())
        typer.echo(f"{name:20} {(step.__doc__ or '').splitlines()[0]}")
        typer.echo(f"{'':20} settings: {', '.join(settings) or '-'}")
        if needs:
            typer.echo(f"{'':20} needs: {'; '.join(needs)}")


def _setting(key: str, field: FieldInfo) -> str:
    """``key=default``; a key alone must be given."""
    return key if field.is_required() else f"{key}={field.get_default(call_default_factory=True)}"


@app.command("check")
def check(
    card: Annotated[str, typer.Argument(help="name of a card, or the path of its YAML file")],
    data_dir: DataDir = None,
    tokenizer: Annotated[str | None, typer.Option(help="model folder, hub id or package:NAME")] = None,
    against: Annotated[list[str] | None, typer.Option(help="evaluation cards; default: those of the card")] = None,
    embed: Annotated[bool, typer.Option(help="also look for paraphrases (needs the extra `embed`)")] = False,
    golds: Annotated[bool, typer.Option(help="let the verifier check every gold")] = True,
    max_tokens: Annotated[int | None, typer.Option(help="prompt and trace together")] = None,
    workers: Annotated[int, typer.Option(help="verifier processes")] = 2,
    as_json: Annotated[bool, typer.Option("--json", help="all faults, one JSON document")] = False,
    cache: ModelCache = CACHE,
) -> None:
    """Hold a card against its rows; exits with 1 when something is wrong."""
    from contextlib import nullcontext

    from reward.pool import VerifierPool
    from rlkd.data.cards import load_card
    from rlkd.data.check import check_card
    from rlkd.data.models import named_tokenizer

    loaded = load_card(card)
    with VerifierPool(loaded.verifier, workers=workers) if golds else nullcontext() as pool:
        report = check_card(
            loaded,
            data_dir=data_dir,
            check_golds=pool.check_golds if pool is not None else None,
            tokenizer=named_tokenizer(tokenizer, cache) if tokenizer else None,
            against=against,
            embedder=_embedder() if embed else None,
            max_tokens=max_tokens,
        )
    typer.echo(json.dumps(report.as_json(), ensure_ascii=False, indent=1) if as_json else "\n".join(report.lines()))
    raise typer.Exit(0 if report.ok else 1)


@app.command("pairs")
def pairs(
    out: Annotated[Path, typer.Option(help="folder for sft.jsonl, pairs.jsonl and report.json")],
    card: Annotated[str | None, typer.Option(help="card of the traces; its verifier judges them")] = None,
    source: Annotated[
        Path | None, typer.Option(help="rows with question, answer and traces; default: the card's")
    ] = None,
    verifier: Annotated[str | None, typer.Option(help="another verifier than the card's")] = None,
    label: Annotated[str, typer.Option(help="whose word counts: verifier, claim or both (REDI)")] = "verifier",
    keep: Annotated[list[str] | None, typer.Option(help="field=value,value: keep only these rows")] = None,
    drop: Annotated[list[str] | None, typer.Option(help="field=value,value: drop these rows")] = None,
    tokenizer: Annotated[str | None, typer.Option(help="counts the limits; without one, words are counted")] = None,
    max_prompt: Annotated[int | None, typer.Option(help="REDI: 800")] = None,
    max_response: Annotated[int | None, typer.Option(help="REDI: 19000")] = None,
    pairs_per_problem: int = 1,
    workers: int = 2,
    time_limit_s: float = 8.0,
    data_dir: DataDir = None,
    cache: ModelCache = CACHE,
) -> None:
    """Verified positives and negatives from traces, with the count after each filter. Run again to resume."""
    from reward.pool import VerifierPool
    from rlkd.data.cards import load_card
    from rlkd.data.chat import encode
    from rlkd.data.curate.where import WhereFilter
    from rlkd.data.models import named_tokenizer
    from rlkd.data.pairs import PairSettings, build_pairs, trace_rows
    from rlkd.errors import DataCardError

    loaded = load_card(card) if card else None
    if loaded is None and (source is None or (verifier is None and label != "claim")):
        raise DataCardError("give --card, or --source together with --verifier")
    spec = verifier or (loaded.verifier if loaded else "exact")
    tokens = named_tokenizer(tokenizer, cache) if tokenizer else None
    with VerifierPool(spec, workers=workers, time_limit_s=time_limit_s) as pool:
        report = build_pairs(
            source or trace_rows(loaded, data_dir),  # type: ignore[arg-type]  # one of the two is there, checked above
            out,
            card=loaded,
            verify_batch=pool.verify_batch,
            verifier=spec,
            label=label,  # type: ignore[arg-type]  # checked by the step
            filters=[WhereFilter(keep=_conditions(keep), drop=_conditions(drop))] if keep or drop else [],
            settings=PairSettings(
                max_prompt=max_prompt, max_response=max_response, pairs_per_problem=pairs_per_problem
            ),
            token_counter=(lambda text: len(encode(tokens, text))) if tokens else None,
        )
    typer.echo("\n".join(report.lines()))


@app.command("curate")
def curate(
    spec: Annotated[Path, typer.Argument(help="YAML: card or source, models, steps (see `rlkd data steps`)")],
    out: Annotated[Path, typer.Option(help="folder of the results")],
) -> None:
    r"""Run curation steps over rows; run again to resume. What was removed lies beside what was kept, with reasons.

    The file, in short: source: rows.jsonl, steps: [exact_dedup, {step: decontaminate, sets: \[math500]}]. All that it
    may hold is in rlkd/data/curate/README.md; `rlkd data steps` lists the steps.
    """
    from rlkd.data.curate.report import StepReport
    from rlkd.data.curate.spec import load_spec, run_spec

    def tell(report: StepReport) -> None:
        reused = f" [{report.reused_parts} of {report.parts} parts were done]" if report.reused_parts else ""
        typer.echo(report.line() + reused)

    run_spec(load_spec(spec), out, tell)
    typer.echo(f"result: {out / 'train.jsonl'}; why rows went: {out}/*/removed-*.jsonl")


def _conditions(given: list[str] | None) -> dict[str, tuple[object, ...]]:
    """Field -> values. ``level=5`` means the text and the number, as a file may hold either."""
    from rlkd.errors import DataCardError

    found: dict[str, tuple[object, ...]] = {}
    for each in given or ():
        name, equals, values = each.partition("=")
        if not equals or not name or not values:
            raise DataCardError(f"'{each}' is no condition; write field=value or field=value,value")
        found[name] = tuple(meant for value in values.split(",") for meant in (value, *_typed(value)))
    return found


def _typed(text: str) -> list[object]:
    """The number, bool or null that YAML reads here."""
    import yaml

    try:
        value = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError):  # brackets or an impossible date: text
        return []
    return [value] if value is None or isinstance(value, bool | int | float) else []


def _embedder() -> object:
    from rlkd.data.curate.embed import MiniLmEmbedder

    return MiniLmEmbedder()
