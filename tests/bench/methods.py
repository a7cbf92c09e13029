"""Methods against each other from one starting point, at equal steps and rollouts (or pairs), over seeds:

python tests/bench/methods.py kdrl        # KDRL, GRPO, distillation, more SFT: from one SFT policy, one SFT teacher
python tests/bench/methods.py offline     # REDI, SFT on right traces, symmetric, DPO, SimPO: from one set of pairs
python tests/bench/methods.py privileged  # OPSD, pi-Distill, RLTF-SD, RLTF-FM, GRPO, more SFT: from one SFT policy

Each seed runs the family's embedded recipe; the others start from that run's stages. Finished runs are kept in --out
and not repeated. The interval is Student's t over seeds.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from rich.console import Console
from rich.table import Table
from scipy import stats

ROOT = Path(__file__).parents[2]
GRPO = "objective={kind: grpo, clip_low: 0.2, clip_high: 0.28}"
GROUPS = ["optim.lr=2.0e-4", "rollout.prompts_per_step=16", "rollout.group_size=8"]  # as recipes/grpo.yaml


@dataclass(frozen=True)
class Method:
    """One row of the table: overrides of a recipe that starts from the base run's models."""

    overrides: list[str] = field(default_factory=list)
    recipe: str | None = None  # default: the family's


Variants = Callable[[Path, dict[str, Any]], dict[str, Method]]


def rl(steps: int) -> str:
    return f"stages=[{{kind: rl, name: rl, steps: {steps}}}]"


def more_sft(recipe: dict[str, Any], *, max_length: int) -> str:
    """As many solutions in as many updates as the RL methods see rollouts."""
    rollout, updates = recipe["rollout"], recipe["learner"]["updates_per_step"]
    rows = rollout["prompts_per_step"] * rollout["group_size"] // updates
    size = f"steps: {recipe['stages'][-1]['steps'] * updates}, batch_size: {rows}, max_length: {max_length}"
    optim = "{lr: 1.0e-3, betas: [0.9, 0.95], schedule: cosine, warmup_steps: 32}"
    return f"stages=[{{kind: sft, name: sft, {size}, optim: {optim}}}]"


def kdrl(_base: Path, recipe: dict[str, Any]) -> dict[str, Method]:
    stage = rl(recipe["stages"][-1]["steps"])
    return {
        "GRPO": Method([stage, GRPO, *GROUPS]),
        "distillation, reverse KL": Method([stage, "objective={kind: distill}"]),
        "SFT, continued": Method([more_sft(recipe, max_length=72)]),
    }


def pairs_as_text(base: Path) -> Path:
    """The pairs that the base run sampled, as a file that another run may name."""
    from rlkd.models import load_tokenizer

    target, tokenizer = base / "pairs.jsonl", load_tokenizer(base / "policy")
    with target.open("w", encoding="utf-8") as stream:
        for line in (base / "stages" / "2-redi" / "pairs.jsonl").read_text(encoding="utf-8").splitlines():
            pair = json.loads(line)
            chosen, rejected = (
                tokenizer.decode(pair[side], skip_special_tokens=True) for side in ("right_ids", "wrong_ids")
            )
            stream.write(json.dumps({"question": pair["question"], "chosen": chosen, "rejected": rejected}) + "\n")
    return target


def offline(base: Path, recipe: dict[str, Any]) -> dict[str, Method]:
    """Equal pairs, updates and rate; then each baseline at REDI's rate times the ratio of the paper's best rates."""
    stage = recipe["stages"][-1]
    pairs = f"{{kind: file, path: {pairs_as_text(base)}}}"
    keys = ("epochs", "batch_size", "max_prompt_tokens", "max_response_tokens")
    size = ", ".join(f"{key}: {stage[key]}" for key in keys)
    rate = stage["optim"]["lr"]

    def method(objective: str, scale: float = 1.0) -> Method:
        optim = f"{{lr: {rate * scale:.3e}, betas: [0.9, 0.95], schedule: linear, warmup_steps: 5}}"
        return Method(
            [f"stages=[{{kind: offline, name: pairs, pairs: {pairs}, objective: {objective}, {size}, optim: {optim}}}]"]
        )

    return {
        "right traces only": method("{kind: sft}"),
        "symmetric": method("{kind: symmetric}"),
        "symmetric, rate / 5": method("{kind: symmetric}", 0.2),
        "DPO": method("{kind: dpo, inverse_temperature: 0.1}"),
        "DPO, rate / 5": method("{kind: dpo, inverse_temperature: 0.1}", 0.2),
        "SimPO": method("{kind: simpo, inverse_temperature: 2.0, margin: 1.0}"),
        "SimPO, rate / 2": method("{kind: simpo, inverse_temperature: 2.0, margin: 1.0}", 0.5),
    }


def privileged(_base: Path, recipe: dict[str, Any]) -> dict[str, Method]:
    same = [rl(recipe["stages"][-1]["steps"])]
    return {
        "RLTF-FM": Method(same, "rltf_fm.yaml"),
        "OPSD": Method(same, "opsd.yaml"),
        "pi-Distill": Method(same, "pi_distill.yaml"),
        "GRPO": Method(same, "grpo.yaml"),
        "SFT, continued": Method([more_sft(recipe, max_length=192)]),
    }


@dataclass(frozen=True)
class Family:
    """Methods that start from one run of a recipe."""

    recipe: str
    title: str
    variants: Variants
    overrides: tuple[str, ...] = ()  # of that run


# one SFT policy for all: it has seen the solution in sight, as OPSD and pi-Distill show it, second turns and critiques
PREPARED = (
    "privileged={field: solution, template: '{question} {privileged} {question}', max_tokens: 48}",
    "stages.1.contexts=[bare, privileged, second_turn, critique]",
    "stages.1.steps=600",
)

FAMILIES = {
    "kdrl": Family("kdrl.yaml", "KDRL", kdrl),
    "offline": Family("redi.yaml", "REDI", offline),
    "privileged": Family("rltf_sd.yaml", "RLTF-SD", privileged, PREPARED),
}


def run(out: Path, recipe: str, overrides: list[str]) -> dict[str, Any]:
    """The summary of a finished run; runs, or continues, whatever isn't."""
    if not (out / "summary.json").exists():
        command = [sys.executable, "-m", "rlkd", str(ROOT / "recipes" / recipe), *overrides, "--out", str(out)]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return dict(json.loads((out / "summary.json").read_text(encoding="utf-8")))


def main(
    family: Annotated[str, typer.Argument(help=", ".join(FAMILIES))],
    seeds: Annotated[int, typer.Option(help="seeds 0 .. N-1")] = 3,
    out: Annotated[Path, typer.Option(help="folder of all runs")] = Path("runs/methods"),
) -> None:
    """Train, compare, print."""
    chosen = FAMILIES[family]
    name = chosen.recipe
    found: dict[str, list[tuple[float, float, dict[str, Any]]]] = {}
    for seed in range(seeds):
        place = out.resolve() / family / f"seed-{seed}"
        base = place / name.removesuffix(".yaml")
        first = run(base, name, [f"seed={seed}", *chosen.overrides])
        stages = first["eval"]["per_stage"]
        before = stages["sft"]["pass@1"]
        recipe = json.loads((base / "recipe.json").read_text(encoding="utf-8"))
        at = next(index for index, stage in enumerate(recipe["stages"]) if stage["name"] == "sft")
        start = [f"seed={seed}", f"policy={{kind: pretrained, path: {base}/stages/{at}-sft/policy}}"]
        if "sft-teacher" in stages:
            teacher = f"{{kind: pretrained, path: {base}/stages/1-sft-teacher/teacher}}"
            start.append(f"teacher.model={teacher}")
            found.setdefault("(the teacher)", []).append((before, stages["sft-teacher"]["pass@1"], {}))
        found.setdefault(chosen.title, []).append((before, first["eval"]["after"]["pass@1"], first))
        for label, method in chosen.variants(base, recipe).items():
            folder = place / "".join(c if c.isalnum() else "-" for c in label.lower())
            summary = run(folder, method.recipe or name, [*start, *method.overrides])
            found.setdefault(label, []).append((before, summary["eval"]["after"]["pass@1"], summary))
    _print(family, found)


def _print(family: str, found: dict[str, list[tuple[float, float, dict[str, Any]]]]) -> None:
    table = Table(title=f"{family}: held-out pass@1 over {len(next(iter(found.values())))} seeds, points")
    for title in (
        "method",
        "before",
        "after",
        "rise, 95 %",
        "each seed",
        "tokens generated",
        "tokens trained",
        "wall s",
    ):
        table.add_column(title, justify="left" if title == "method" else "right")
    for name, runs in found.items():
        before, after = (100 * np.array([values[i] for values in runs]) for i in (0, 1))
        rise = after - before
        half = stats.sem(rise) * stats.t.ppf(0.975, len(rise) - 1) if len(rise) > 1 else float("nan")
        tokens = [np.mean([run["tokens"][key] if run else 0 for *_, run in runs]) for key in ("generated", "trained")]
        wall = np.mean([run["wall_s"] if run else 0 for *_, run in runs])
        table.add_row(
            *(name, f"{before.mean():.1f}", f"{after.mean():.1f}", f"{rise.mean():+.1f} ± {half:.1f}"),
            *(" ".join(f"{value:+.1f}" for value in rise), *(f"{count:,.0f}" for count in tokens), f"{wall:.0f}"),
        )
    Console(width=140).print(table)


if __name__ == "__main__":
    typer.run(main)
