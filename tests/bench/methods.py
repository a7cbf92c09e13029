"""Methods against each other from one starting point, at equal steps and rollouts, over seeds:

python tests/bench/methods.py --seeds 3 --out runs/methods

Each seed trains recipes/kdrl.yaml; the other methods start from that run's SFT policy and SFT teacher. Finished runs
are kept in --out and not repeated. The interval is Student's t over seeds.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from rich.console import Console
from rich.table import Table
from scipy import stats

ROOT = Path(__file__).parents[2]
RECIPE = ROOT / "recipes" / "kdrl.yaml"


def variants(steps: int, rows: int, updates: int) -> dict[str, list[str]]:
    """Overrides of each method; SFT sees as many solutions in as many updates as the others see rollouts."""
    rl = f"stages=[{{kind: rl, name: rl, steps: {steps}}}]"
    grpo = ["optim.lr=2.0e-4", "rollout.prompts_per_step=16", "rollout.group_size=8"]  # as recipes/grpo.yaml
    optim = "{lr: 1.0e-3, betas: [0.9, 0.95], schedule: cosine, warmup_steps: 32}"
    sft = f"{{kind: sft, name: sft, steps: {steps * updates}, batch_size: {rows // updates}, optim: {optim}}}"
    return {
        "GRPO": [rl, "objective={kind: grpo, clip_low: 0.2, clip_high: 0.28}", *grpo],
        "distillation, reverse KL": [rl, "objective={kind: distill}"],
        "SFT, continued": [f"stages=[{sft}]"],
    }


def run(out: Path, overrides: list[str]) -> dict[str, Any]:
    """The summary of a finished run; runs, or continues, whatever isn't."""
    if not (out / "summary.json").exists():
        command = [sys.executable, "-m", "rlkd", str(RECIPE), *overrides, "--out", str(out), "--resume"]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return dict(json.loads((out / "summary.json").read_text(encoding="utf-8")))


def main(
    seeds: Annotated[int, typer.Option(help="seeds 0 .. N-1")] = 3,
    out: Annotated[Path, typer.Option(help="folder of all runs")] = Path("runs/methods"),
) -> None:
    """Train, compare, print."""
    found: dict[str, list[tuple[float, float, dict[str, Any]]]] = {}
    for seed in range(seeds):
        base = out.resolve() / f"seed-{seed}"
        first = run(base / "kdrl", [f"seed={seed}"])
        recipe = json.loads((base / "kdrl" / "recipe.json").read_text(encoding="utf-8"))
        rollout, updates = recipe["rollout"], recipe["learner"]["updates_per_step"]
        start = [
            f"seed={seed}",
            f"policy={{kind: pretrained, path: {base}/kdrl/stages/0-sft/policy}}",
            f"teacher.model={{kind: pretrained, path: {base}/kdrl/stages/1-sft-teacher/teacher}}",
        ]
        before = first["eval"]["before"]["pass@1"]
        per_stage = first["eval"]["per_stage"]
        found.setdefault("(teacher)", []).append((before, per_stage["sft-teacher"]["pass@1"], {}))
        found.setdefault("KDRL", []).append((before, first["eval"]["after"]["pass@1"], first))
        rows = rollout["prompts_per_step"] * rollout["group_size"]
        for name, overrides in variants(recipe["stages"][-1]["steps"], rows, updates).items():
            folder = base / name.replace(",", "").replace(" ", "-").lower()
            summary = run(folder, [*start, *overrides])
            found.setdefault(name, []).append((before, summary["eval"]["after"]["pass@1"], summary))
    _print(found)


def _print(found: dict[str, list[tuple[float, float, dict[str, Any]]]]) -> None:
    table = Table(title=f"held-out pass@1 over {len(next(iter(found.values())))} seeds, points")
    for title in ("method", "before", "after", "rise, 95 %", "each seed", "tokens generated", "wall s"):
        table.add_column(title, justify="left" if title == "method" else "right")
    for name, runs in found.items():
        before, after = (100 * np.array([values[i] for values in runs]) for i in (0, 1))
        rise = after - before
        half = stats.sem(rise) * stats.t.ppf(0.975, len(rise) - 1) if len(rise) > 1 else float("nan")
        tokens = np.mean([run["tokens"]["generated"] if run else 0 for *_, run in runs])
        wall = np.mean([run["wall_s"] if run else 0 for *_, run in runs])
        table.add_row(
            *(name, f"{before.mean():.1f}", f"{after.mean():.1f}", f"{rise.mean():+.1f} ± {half:.1f}"),
            *(" ".join(f"{value:+.1f}" for value in rise), f"{tokens:,.0f}", f"{wall:.0f}"),
        )
    Console(width=120).print(table)


if __name__ == "__main__":
    typer.run(main)
