"""The command line. Heavy imports happen inside the commands: ``rlkd --help`` stays under half a second."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from rlkd.errors import RlkdError

app = typer.Typer(
    name="rlkd",
    help="Post-training for reasoning LLMs from one recipe file.",
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
    from rlkd.launch import Launch
    from rlkd.recipe import load_recipe

    launch = Launch.from_environment()
    if launch.role == "idle":
        return
    if launch.role == "join":
        from rlkd.cluster.joining import join_and_wait

        join_and_wait(launch)
        return
    loaded = load_recipe(recipe, overrides or ())
    if dry_run:
        from rlkd.arithmetic import describe

        typer.echo(describe(launch.resolve(loaded)))
        return
    from rlkd.trainer.run import train as run

    run(loaded, out=out, resume=resume, root=recipe.resolve().parent, launch=launch)


@app.command()
def validate(recipe: RecipeArg, overrides: Overrides = None) -> None:
    """Check a recipe and say whether it can be launched as a file."""
    from rlkd.recipe import has_launch_lines, load_recipe

    loaded = load_recipe(recipe, overrides or ())
    typer.echo(f"{recipe}: a valid recipe ('{loaded.name}', {len(loaded.stages)} stages)")
    if not has_launch_lines(recipe):
        typer.echo(
            f"  it has no launch lines: run it with `rlkd train {recipe}` or `accelerate launch -m rlkd {recipe}`"
        )


def main(recipe: str | None = None) -> None:
    """Entry of a launched recipe file (``rlkd.main(__file__)``), of ``python -m rlkd FILE`` and of ``rlkd``.

    Exit status: 0 done, 2 a fault that rlkd explains, 130 interrupted.
    """
    _quiet()
    arguments = sys.argv[1:]
    if recipe is not None:
        arguments = ["train", recipe, *arguments]
    elif arguments and Path(arguments[0]).suffix in (".yaml", ".yml"):
        arguments = ["train", *arguments]
    try:
        app(args=arguments, standalone_mode=False)
    except typer.Exit as stop:
        sys.exit(stop.exit_code)
    except RlkdError as error:
        _explain(error)
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


def _quiet() -> None:
    """The driver's terminal is ours: libraries that it imports for tokenizers and configs say nothing unless they fail."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("DS_ACCELERATOR", "cpu")  # the driver never trains; workers choose for themselves
    os.environ.setdefault("RAY_DISABLE_IMPORT_WARNING", "1")


def _explain(error: RlkdError) -> None:
    from rich.console import Console

    console = Console(stderr=True, highlight=False, soft_wrap=True)
    console.print(f"[bold red]{type(error).__name__}[/bold red]", end=" ")
    console.print(str(error), markup=False)
