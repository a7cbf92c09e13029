"""The recipes themselves at reduced size: real engines, Ray and DeepSpeed, from the command to the final model."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
SMALL = [
    "stages.sft.steps=4",
    "stages.sft.optim={lr: 1.0e-3}",
    "data.train.size=64",
    "data.eval.size=8",
    "rollout.prompts_per_step=4",
    "optim.warmup_steps=1",
    "log.rollouts_every=1",
]
TEACHER = ["stages.sft-teacher.steps=4", "stages.sft-teacher.optim={lr: 1.0e-3}"]
GROUP = ["rollout.group_size=4"]
UNMEASURED = ["data.eval=null", "eval={}"]
OPD = [*GROUP, *UNMEASURED, "stages=[{kind: rl, name: kdrl, steps: 2}]", "objective={kind: opd}"]
# what other runs show as well is left out of each: fine-tuning first, and evaluations (each of a teacher is an engine)
RECIPES = {
    "opsd.yaml, adapters": [
        "stages.opsd.steps=2", "learner.lora={rank: 4}", "eval.every=1", "eval.samples=1", "eval.temperature=0.0",
        "eval.early_stop={patience: 5, length_quarter: 4}",
    ],
    "pi_distill": [*GROUP, *UNMEASURED, "stages=[{kind: rl, name: pi_distill, steps: 2}]"],
    "rltf_sd.yaml, with critiques": [
        *GROUP, *UNMEASURED, "stages.sft-bare.steps=2", "stages.sft-bare.optim={lr: 1.0e-3}",
        "stages.sft.contexts=[bare, second_turn, critique]", "stages.rltf-sd.steps=2",
        "objective.feedback_coef={kind: constant, value: 0.2}",
    ],
    # warmed up until it writes whole characters: a row whose bytes are no text has nothing to align
    "alm.yaml, debiased": [
        *TEACHER, "stages.sft.steps=80", "stages.sft.optim={lr: 3.0e-3}", "stages.alm.steps=2", "objective.debias=0.1",
        "teacher.engine=transformers",
    ],
    "kdrl.yaml, hidden": [*OPD, "teacher.transport=hidden", "teacher.engine=transformers"],
    "kdrl.yaml, top_k": [*OPD, "teacher.transport=top_k"],
}  # fmt: skip
FIGURES = {
    "opsd.yaml, adapters": ["divergence", "clipped_share", "eval/watched"],
    "pi_distill": ["context_kl_per_rollout", "bare_log_ratio"],
    "rltf_sd.yaml, with critiques": ["revision_nll", "second_turn_reward", "feedback_nll"],
    "alm.yaml, debiased": ["alm", "chunks_per_rollout"],
    "kdrl.yaml, hidden": ["divergence"],
    "kdrl.yaml, top_k": ["divergence"],
}

pytestmark = pytest.mark.engine


def _lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.mark.parametrize("name", RECIPES)
def test_recipe_runs_to_a_model(name: str, tmp_path: Path) -> None:
    recipe = name.partition(",")[0].removesuffix(".yaml") + ".yaml"
    out = tmp_path / "run"
    command = [sys.executable, "-m", "rlkd", str(ROOT / "recipes" / recipe), *SMALL, *RECIPES[name], "--out", str(out)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=580, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    rows = _lines(out / "metrics.jsonl")
    assert [row["step"] for row in rows] == [1, 2]
    for row in rows:
        # sampled, second-turn and privileged rows alike: the learner reads the tokens that the engine sampled
        assert row["rollout_policy_logprob_gap/max"] < 1e-3
        assert row["grad_norm"] > 0
        for figure in FIGURES[name]:
            assert row[figure] is not None, figure
    assert (out / "policy" / "config.json").is_file()
    kept = _lines(next((out / "rollouts").glob("*/step-000002.jsonl")))
    if "opsd" in name or "pi_distill" in name:
        assert all(line["teacher_prompt"] and line["teacher_prompt"] != line["prompt"] for line in kept)
        assert all((line["sampled_from"] == "teacher_prompt") == ("pi_distill" in name) for line in kept)
