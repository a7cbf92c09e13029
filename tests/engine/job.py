"""Runs of the real command at reduced size, and of the same command killed half-way."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file

ROOT = Path(__file__).parents[2]
SMALL = [
    "stages.sft.steps=4",
    "stages.sft-teacher.steps=12",
    "stages.kdrl.steps=5",
    "data.train.size=64",
    "data.eval.size=16",
    "rollout.prompts_per_step=4",
    "rollout.group_size=4",
    "rollout.max_new_tokens=16",
    "optim.warmup_steps=1",
    "optim.lr=1e-3",
    "checkpoint.every=2",
    "checkpoint.sft_every=2",
    "log.rollouts_every=2",
]
SMALL_SFT = ["stages.sft.optim={lr: 1.0e-3}", "stages.sft-teacher.optim={lr: 1.0e-3}"]


def command(out: Path, overrides: Sequence[str] = (), recipe: str = "kdrl.yaml") -> list[str]:
    """The command line of a run."""
    return [sys.executable, "-m", "rlkd", str(ROOT / "recipes" / recipe), *overrides, "--out", str(out)]


def run(out: Path, overrides: Sequence[str], recipe: str = "kdrl.yaml") -> str:
    """Run to the end and return what was printed; a failure shows it."""
    done = subprocess.run(command(out, overrides, recipe), capture_output=True, text=True, timeout=560, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


def run_and_kill(out: Path, overrides: Sequence[str], when: Callable[[], bool], recipe: str = "kdrl.yaml") -> None:
    """Start a run in a session of its own and SIGKILL the driver as soon as ``when`` holds; see ``printed``."""
    with (
        out.with_name(f"{out.name}.txt").open("a", encoding="utf-8") as text,
        subprocess.Popen(
            command(out, overrides, recipe), stdout=text, stderr=subprocess.DEVNULL, start_new_session=True
        ) as process,
    ):
        until = time.monotonic() + 400
        while not when():
            assert process.poll() is None, "the run ended before it could be killed"
            assert time.monotonic() < until, "the moment to kill never came"
            time.sleep(0.02)
        os.kill(process.pid, signal.SIGKILL)


def printed(out: Path) -> str:
    """What all killed runs of a folder printed."""
    return out.with_name(f"{out.name}.txt").read_text(encoding="utf-8")


def steps_logged(out: Path) -> int:
    """Lines of metrics.jsonl so far."""
    path = out / "metrics.jsonl"
    return len(path.read_text().splitlines()) if path.exists() else 0


def difference(one: Path, other: Path) -> float:
    """Largest absolute difference between the final policies of two runs."""
    left, right = (load_file(out / "policy" / "model.safetensors") for out in (one, other))
    assert left.keys() == right.keys()
    return max(float((left[name].to(torch.float64) - right[name].to(torch.float64)).abs().max()) for name in left)
