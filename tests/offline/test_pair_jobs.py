"""The embedded recipe at reduced size on the real engines: traces, pairs, training, a kill, the report."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from rlkd.checkpoint import read_json
from rlkd.recipe.loading import read_recipe_file
from rlkd.report.page import write_report

ROOT = Path(__file__).parents[2]
SMALL = [
    "data.train.size=512",
    "data.eval.size=16",
    "eval.every=1",
    "eval.samples=1",
    "eval.temperature=0.0",
    "stages.sft-teacher.steps=90",  # until some of its sums are right
    "stages.redi.pairs.problems=64",
    "stages.redi.epochs=null",
    "stages.redi.steps=4",
    "stages.redi.batch_size=4",
    "stages.redi.optim.warmup_steps=1",
    "checkpoint.every=2",
]

pytestmark = pytest.mark.engine


def _recipe(place: Path) -> Path:
    """The embedded one without its first stage: tests/engine/test_job.py fine-tunes a policy."""
    raw = read_recipe_file(ROOT / "recipes" / "redi.yaml")
    assert raw["stages"].pop(0)["name"] == "sft"
    path = place / "redi.yaml"
    path.write_text(yaml.safe_dump(raw), encoding="utf-8")
    return path


def _run(recipe: Path, out: Path) -> str:
    command = [sys.executable, "-m", "rlkd", str(recipe), *SMALL, "--out", str(out)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=580, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


def _lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_redi_runs_to_a_model_and_goes_on_after_a_kill(tmp_path: Path) -> None:
    recipe, out = _recipe(tmp_path), tmp_path / "run"
    _run(recipe, out)
    rows, stage = _lines(out / "metrics.jsonl"), out / "stages" / "1-redi"
    assert [row["step"] for row in rows] == [1, 2, 3, 4]
    assert ["eval/pass@1" in row for row in rows] == [True, True, True, False]  # the last is the stage's own figure
    assert read_json(stage / "done.json")["eval"]["n"] == 16
    for row in rows:
        assert row["margin"] == pytest.approx(row["right_logprob"] - row["wrong_logprob"], abs=1e-12)
        assert row["loss"] == pytest.approx(-row["right_logprob"] + 0.8 * row["wrong_logprob"], abs=1e-5)
        assert row["grad_norm"] > 0 and row["entropy"] > 0 and row["tokens_per_s"] > 0 and row["lr"] > 0
    report = json.loads((stage / "pairs.json").read_text())
    assert report["kept"] == len(_lines(stage / "pairs.jsonl")) > 0
    assert sum(report["traces"].values()) == 64 * 8
    assert (out / "policy" / "config.json").is_file()
    assert "RL steps" in write_report(out).read_text(encoding="utf-8")

    # as a kill after the last checkpoint leaves it: updates 3 and 4 are to be done again, and nothing else
    cost = read_json(out / "summary.json")["tokens"]
    for gone in (out / "summary.json", stage / "done.json"):
        gone.unlink()
    for folder in (out / "policy", stage / "policy"):
        shutil.rmtree(folder)
    said = _run(recipe, out)
    assert "continuing redi after update 2" in said
    assert "traces 64/64" not in said  # its pairs were there
    again = _lines(out / "metrics.jsonl")
    timed = ("step_s", "tokens_per_s", "learner_memory_gib/max")
    plain = [[{key: row[key] for key in row if key not in timed} for row in each] for each in (rows, again)]
    assert plain[0] == plain[1]
    assert read_json(out / "summary.json")["tokens"] == cost  # nothing is counted twice or lost
