"""A finding as files: one table (Markdown and CSV) and one picture, each written whole or not at all."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlkd.data.rows import atomic_open
from rlkd.errors import MissingExtraError

Cell = str | int | float | None


@dataclass(frozen=True)
class Table:
    """Named columns and rows; numbers are shown with four significant digits, missing ones as a dash."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]

    def markdown(self) -> str:
        lines = [f"**{self.title}**", "", _line(self.columns), _line(["---"] * len(self.columns))]
        return "\n".join([*lines, *(_line([_shown(cell) for cell in row]) for row in self.rows)]) + "\n"

    def csv(self) -> str:
        out = io.StringIO()
        writer = csv.writer(out, lineterminator="\n")
        writer.writerow(self.columns)
        writer.writerows(self.rows)
        return out.getvalue()


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _shown(cell: Cell) -> str:
    if cell is None:
        return "-"
    return f"{cell:.4g}" if isinstance(cell, float) else str(cell)


def write_report(out: str | Path, name: str, tables: Sequence[Table], draw: Callable[[Any], None]) -> list[Path]:
    """Write ``name.md``, ``name.csv`` (``name-2.csv``, ... for further tables) and ``name.png``.

    Args:
        draw: draws on the matplotlib axes that it is given.
    Returns: the paths, the picture last.
    """
    out = Path(out)
    paths = [out / f"{name}.md"]
    with atomic_open(paths[0]) as stream:
        stream.write("\n".join(table.markdown() for table in tables))
    for at, table in enumerate(tables, start=1):
        paths.append(out / (f"{name}.csv" if at == 1 else f"{name}-{at}.csv"))
        with atomic_open(paths[-1]) as stream:
            stream.write(table.csv())
    paths.append(out / f"{name}.png")
    _write_picture(paths[-1], draw)
    return paths


def _write_picture(path: Path, draw: Callable[[Any], None]) -> None:
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingExtraError("pictures need matplotlib: pip install 'rlkd[train]'") from error
    figure = Figure(figsize=(7, 4.5), layout="constrained")  # no pyplot: no global state, safe in any thread
    FigureCanvasAgg(figure)
    draw(figure.subplots())
    temporary = path.with_name(f".{path.name}.tmp")
    figure.savefig(temporary, format="png", dpi=120)
    temporary.replace(path)
