"""What the user sees: stages, a live bar, the figures that matter, one final table."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from rich.console import Console as RichConsole
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table

PLAIN_EVERY_S = 5.0  # without a terminal: at most one progress line in this many seconds


class Bar:
    """One stage's progress; a live bar on a terminal, plain lines elsewhere."""

    def __init__(self, console: RichConsole, name: str, total: int) -> None:
        self.console, self.name, self.total = console, name, total
        self.printed, self.last = 0.0, ""
        self.progress: Progress | None = None
        self.task: TaskID | None = None
        if console.is_terminal:
            self.progress = Progress(
                TextColumn("[bold]{task.description}"),
                BarColumn(bar_width=24),
                MofNCompleteColumn(),
                TimeElapsedColumn(),
                TimeRemainingColumn(),
                TextColumn("{task.fields[figures]}"),
                console=console,
            )
            self.task = self.progress.add_task(name, total=total, figures="")

    def update(self, step: int, figures: str) -> None:
        """Show the number of finished steps and a line of figures."""
        if self.progress is not None and self.task is not None:
            self.progress.update(self.task, completed=step, figures=figures)
            return
        line = f"{self.name} {step}/{self.total}  {figures}"
        due = step >= self.total or time.monotonic() - self.printed >= PLAIN_EVERY_S
        if due and line != self.last:
            self.printed, self.last = time.monotonic(), line
            self.console.print(line, highlight=False, soft_wrap=True)


class Console:
    """The driver's terminal."""

    def __init__(self) -> None:
        self.rich = RichConsole(highlight=False)

    def heading(self, text: str) -> None:
        self.rich.print(f"[bold]{text}[/bold]")

    def status(self, text: str) -> None:
        self.rich.print(f"[dim]{text}[/dim]", soft_wrap=True)

    def note(self, text: str) -> None:
        self.rich.print(f"[yellow]note[/yellow] {text}", soft_wrap=True)

    @contextmanager
    def bar(self, name: str, total: int) -> Iterator[Bar]:
        """A progress display for the duration of the block."""
        bar = Bar(self.rich, name, total)
        if bar.progress is None:
            yield bar
        else:
            with bar.progress:
                yield bar

    def evaluation(self, label: str, summary: Mapping[str, Any]) -> None:
        low, high = summary["ci95"]
        of_many = [name for name in summary if name.startswith(("pass@", "maj@")) and name != "pass@1"]
        self.rich.print(
            f"  {label}: pass@1 [bold]{summary['pass@1']:.1%}[/bold] (95 % CI {low:.1%} to {high:.1%}, "
            f"n={summary['n']}), {''.join(f'{name} {summary[name]:.1%}, ' for name in of_many)}"
            f"mean length {summary['mean_tokens']:.0f} tokens, truncated {summary['truncated']:.1%}",
            soft_wrap=True,
        )

    def final(self, summary: Mapping[str, Any], folder: str) -> None:
        """The table a run ends with."""
        table = Table(title=f"{summary['name']}: held-out accuracy")
        for column in ("model", "pass@1", "95 % CI", "n", "mean tokens", "truncated"):
            table.add_column(column, justify="left" if column == "model" else "right")
        rows = {**summary["eval"]["per_stage"], "before": summary["eval"]["before"], "after": summary["eval"]["after"]}
        for name, figures in rows.items():
            if figures:
                low, high = figures["ci95"]
                bold = "bold" if name in ("before", "after") else ""
                table.add_row(
                    name,
                    f"{figures['pass@1']:.1%}",
                    f"{low:.1%} to {high:.1%}",
                    str(figures["n"]),
                    f"{figures['mean_tokens']:.0f}",
                    f"{figures['truncated']:.1%}",
                    style=bold,
                )
        self.rich.print(table)
        gap = summary["gap"]
        offline = f"{summary['offline_updates']} offline updates, " if summary.get("offline_updates") else ""
        self.rich.print(
            f"{offline}{summary['steps']} RL steps in {summary['wall_s']:.0f} s; "
            f"{summary['tokens']['generated']:,} tokens generated; "
            f"rollout/policy log-prob gap mean {gap['mean']:.1e}, max {gap['max']:.1e} nats; "
            f"{summary['abstained']} abstained verdicts\nmodel: {folder}/policy",
            soft_wrap=True,
        )
