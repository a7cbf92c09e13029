"""SIGKILL at every stage and after every step of a short run, then continue; the final policies must be equal:

python tests/engine/kills.py --out /tmp/kills
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer
from job import SMALL, SMALL_SFT, difference, run, run_and_kill, steps_logged

OVERRIDES = [*SMALL, *SMALL_SFT]


def moments(out: Path, steps: int) -> dict[str, Callable[[], bool]]:
    """When to kill, by name."""
    found: dict[str, Callable[[], bool]] = {
        "in the policy's SFT": lambda: (out / "logs" / "SftWorker-sft-0.log").exists(),
        "in the teacher's SFT, after a checkpoint": lambda: any(out.glob("stages/1-sft-teacher/*.tmp/step-2")),
        "while the learner starts": lambda: (out / "logs" / "LearnerWorker-kdrl-0.log").exists(),
    }
    for step in range(1, steps + 1):
        found[f"after step {step}"] = lambda step=step: steps_logged(out) >= step  # type: ignore[misc]
    return found


def main(out: Annotated[Path, typer.Option(help="folder of all runs")] = Path("runs/kills")) -> None:
    """One undisturbed run, then one killed at each moment."""
    run(out / "undisturbed", OVERRIDES)
    worst = 0.0
    for index, moment in enumerate(moments(out, 5)):
        folder = out / f"killed-{index}"
        run_and_kill(folder, OVERRIDES, moments(folder, 5)[moment])
        run(folder, OVERRIDES)
        found = difference(out / "undisturbed", folder)
        worst = max(worst, found)
        print(f"killed {moment}: maximum parameter difference {found}", flush=True)
    print(f"largest of all: {worst}")


if __name__ == "__main__":
    typer.run(main)
