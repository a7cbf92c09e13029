"""The whole job with rollouts one update behind: bounded, deterministic, and the same by either way of weights."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from job import ROOT, difference, run, run_and_kill, steps_logged

pytestmark = pytest.mark.engine
OVERRIDES = [
    "stages=[{kind: rl, name: grpo, steps: 8}]",
    "data.train.size=64",
    "data.eval=null",
    "eval={}",
    "data.check_golds=false",
    "verifier={kind: 'judges:even_length'}",  # an untrained policy has to be right sometimes
    "rollout.prompts_per_step=4",
    "rollout.group_size=4",
    "rollout.max_new_tokens=12",
    "optim={lr: 1.0e-3}",
    "learner.updates_per_step=1",
    "checkpoint.every=2",
    "cluster.schedule=async",
    "cluster.max_staleness=1",
    "objective.correction={kind: truncate, high: 2.0}",
]


@pytest.fixture(autouse=True)
def _judges_can_be_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    here = str(Path(__file__).parent)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), here]))


def lines(out: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def test_rollouts_are_one_update_old_and_a_killed_run_ends_where_another_does(tmp_path: Path) -> None:
    """One run through the object store, undisturbed; the other over gloo, killed with rollouts in flight."""
    quiet, killed = tmp_path / "quiet", tmp_path / "killed"
    run(quiet, [*OVERRIDES, "cluster.weights=object_store"], "grpo.yaml")
    over_gloo = [*OVERRIDES, "cluster.weights=gloo"]
    run_and_kill(killed, over_gloo, lambda: steps_logged(killed) >= 3, "grpo.yaml")
    latest = max((killed / "checkpoints" / "grpo").glob("step-*"))  # 2, or more on a machine that was slow to kill
    step = int(latest.name.removeprefix("step-"))
    in_flight = json.loads((latest / "in_flight.json").read_text())
    assert [(part["step"], part["rollouts"][0][0]["min_version"]) for part in in_flight] == [(step, step - 1)]
    assert f"continuing grpo after step {step}" in run(killed, over_gloo, "grpo.yaml")
    for out in (quiet, killed):
        found = lines(out)
        assert [line["policy_version"] for line in found] == list(range(1, 9))
        assert [line["staleness"] for line in found] == [0] + [1] * 7
        assert sum(line["grad_norm"] > 0 for line in found) >= 4  # else equal policies would prove nothing
    assert difference(quiet, killed) == 0.0
