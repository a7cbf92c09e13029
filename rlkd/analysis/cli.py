"""``rlkd analyze ...``: each command writes a table and a picture and prints the table."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(no_args_is_help=True, help="Agreement, teacher hacking and provenance of distilled models.")

Out = Annotated[Path, typer.Option(help="folder for the table (.md, .csv) and the picture (.png)")]


@app.command("agreement")
def agreement(
    rows: Annotated[Path, typer.Argument(help="JSON lines: answer (gold), teacher and student texts")],
    out: Out,
    verifier: Annotated[str, typer.Option(help="judges both against the gold and against each other")] = "math",
) -> None:
    """Agreement and fidelity of a distilled model with its teacher."""
    from reward.registry import load
    from rlkd.analysis.agreement import agreement_table, bleu, compare, draw_agreement
    from rlkd.analysis.report import write_report
    from rlkd.data.rows import good_rows

    judge = load(verifier)
    table = agreement_table([compare(row, judge, bleu) for row in good_rows(rows)])
    write_report(out, "agreement", [table], draw_agreement(table))
    typer.echo(table.markdown())


@app.command("hacking")
def hacking(
    metrics: Annotated[Path, typer.Argument(help="JSON lines of a run's metrics")],
    out: Out,
    proxy: Annotated[str, typer.Option(help="name of the distance to the teacher")],
    golden: Annotated[str | None, typer.Option(help="name of the distance to the truth, or its stand-in")] = None,
    accuracy: Annotated[
        str | None,
        typer.Option(help="in place of golden: name of an accuracy (eval/pass@1); golden is what it lacks to 1"),
    ] = None,
    step: Annotated[str, typer.Option(help="name of the step counter")] = "step",
    stage: Annotated[str | None, typer.Option(help="stage of the run; needed where several have these numbers")] = None,
) -> None:
    """Teacher-hacking monitor: proxy against golden, and the break of the proxy's power law."""
    from rlkd.analysis.hacking import Curve, draw_hacking, hacking_table
    from rlkd.analysis.report import write_report
    from rlkd.data.rows import good_rows
    from rlkd.errors import DataCardError, did_you_mean

    if golden and accuracy:
        raise DataCardError("give --golden, a distance, or --accuracy, not both")
    names = [step, proxy, *filter(None, (golden, accuracy))]
    rows = list(good_rows(metrics))
    stages = list(dict.fromkeys(str(row["stage"]) for row in rows if "stage" in row))
    if stage is not None and stage not in stages:
        named = ", ".join(stages) or "none"
        raise DataCardError(f"{metrics}: no stage '{stage}'{did_you_mean(stage, stages)}; stages there: {named}")
    rows = [row for row in rows if stage is None or row.get("stage") == stage]
    found = [row for row in rows if all(isinstance(row.get(name), (int, float)) for name in names)]
    if not found:
        known = sorted({name for row in rows for name, value in row.items() if isinstance(value, (int, float))})
        wrong = "; ".join(f"'{name}' is not there{did_you_mean(name, known)}" for name in names if name not in known)
        why = wrong or f"no row has all of {', '.join(names)}"
        raise DataCardError(f"{metrics}: {why}; numbers there: {', '.join(known) or 'none'}")
    several = list(dict.fromkeys(str(row["stage"]) for row in found if "stage" in row))
    if len(several) > 1:
        raise DataCardError(f"{metrics}: steps begin again in each stage; give --stage, one of {', '.join(several)}")
    columns: dict[str, tuple[float, ...]] = {name: tuple(float(row[name]) for row in found) for name in names}
    measured = Curve(columns[step], columns[proxy])
    truth = Curve(columns[step], columns[golden]) if golden else None
    if accuracy:
        truth = Curve(columns[step], tuple(1.0 - value for value in columns[accuracy]))
    table = hacking_table(measured, truth)
    write_report(out, "hacking", [table], draw_hacking(measured, truth))
    typer.echo(table.markdown())


@app.command("provenance")
def provenance(
    rows: Annotated[Path, typer.Argument(help="JSON lines: question, text sampled from the distilled model, right")],
    out: Out,
    teacher: Annotated[str, typer.Option(help="model folder, hub id or package:NAME")],
    student: Annotated[str, typer.Option(help="the student before training")],
    distilled: Annotated[str, typer.Option(help="the student after training")],
    alpha: float = 0.05,
    beta: float = 0.1,
    min_answers: Annotated[int, typer.Option(help="curves end where fewer answers are that long")] = 5,
) -> None:
    """Provenance of a distilled model's sentences: teacher, student, shared or boosted."""
    from rlkd.analysis.provenance import draw_provenance, provenance_table, trace_answer
    from rlkd.analysis.report import write_report
    from rlkd.data.curate.perplexity import question_prompt
    from rlkd.data.fields import as_claim, lookup
    from rlkd.data.models import named_scorer
    from rlkd.data.rows import BadRow, read_rows

    found = [(number, row) for number, row in read_rows(rows) if not isinstance(row, BadRow)]
    rights = [as_claim(lookup(row, "right"), f"{rows}: row {number}, 'right'") for number, row in found]
    pairs = [(question_prompt(row), row["text"]) for _, row in found]
    # one model in memory at a time
    scores = [named_scorer(name, out / "models")(pairs) for name in (teacher, student, distilled)]
    answers = [
        trace_answer(text, right, (t, s, d), alpha=alpha, beta=beta)
        for (_, text), right, t, s, d in zip(pairs, rights, *scores, strict=True)
    ]
    table = provenance_table(answers, min_answers)
    write_report(out, "provenance", [table], draw_provenance(answers, min_answers))
    typer.echo(table.markdown())


@app.command("density")
def density(
    rows: Annotated[
        Path, typer.Argument(help="JSON lines: question and traces, or solution, as a curation writes them")
    ],
    out: Out,
    model: Annotated[str, typer.Option(help="scores the traces: model folder, hub id or package:NAME")],
) -> None:
    """How sure a model is of traces, by teacher and sampling temperature (DASD), and their token entropy (DED)."""
    from rlkd.analysis.density import density_table, draw_density, group_scores
    from rlkd.analysis.report import write_report
    from rlkd.data.curate.perplexity import question_prompt
    from rlkd.data.models import named_scorer
    from rlkd.data.rows import good_rows

    traces = [
        (row, trace)
        for row in good_rows(rows)
        for trace in row.get("traces", [{**row, "text": row.get("solution", "")}])
    ]
    scores = named_scorer(model, out / "models")([(question_prompt(row), trace["text"]) for row, trace in traces])
    groups = group_scores((trace for _, trace in traces), scores)
    table = density_table(groups)
    write_report(out, "density", [table], draw_density(groups))
    typer.echo(table.markdown())
