"""A run folder written by the real writers of metrics and rollouts, with figures that the tests can foresee."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from rlkd.metrics import MetricsLog

TOKENS = ["Ġ4", "2", "<|end|>"]


def rollout(group: int, **changes: Any) -> dict[str, Any]:
    base = {
        "step": 5, "group": group, "id": f"p-{group}", "prompt": "6 x 7 = </script><b>", "completion": " 42",
        "answer": "42", "parsed": "42", "score": 1.0, "reason": None, "advantage": 0.5, "trained": True,
        "distilled": True,
        "finish_reason": "stop", "seed": 1, "min_version": 3, "max_version": 4, "staleness": 1, "tokens": TOKENS,
        "token_ids": [7, 8, 1], "rollout_logprobs": [-1.0, -2.0, -0.5], "policy_logprobs": [-1.0, -2.0 + 1e-6, -0.5],
        "teacher_logprobs": [-0.25, -4.0, -0.5],
    }  # fmt: skip
    return {**base, **changes}


def evaluation(accuracy: float) -> dict[str, Any]:
    low, high = max(0.0, accuracy - 0.04), min(1.0, accuracy + 0.04)
    return {"pass@1": accuracy, "n": 512, "ci95": [low, high], "mean_tokens": 30.0, "truncated": 0.25, "abstained": 3}


@pytest.fixture
def run_folder(tmp_path: Path) -> Path:
    folder = tmp_path / "run"
    (folder / "rollouts" / "kdrl").mkdir(parents=True)
    (folder / "stages" / "0-sft").mkdir(parents=True)
    (folder / "recipe.json").write_text(
        json.dumps({"name": "demo", "description": "a <b>run</b>", "stages": [{"name": "sft"}, {"name": "kdrl"}]}),
        encoding="utf-8",
    )
    log = MetricsLog(folder, name="demo", position=0)
    for step in range(1, 21):
        parts = dict.fromkeys(("generate_s", "judge_s", "teacher_s", "learn_s", "publish_s"), 1.0)
        log.write(
            {"stage": "kdrl", "step": step, "reward": step / 20, "entropy": float("nan"), "staleness": 0, **parts}
        )
    log.close()
    rows = [rollout(0), rollout(0, score=0.0, parsed=None, reason="wrong"), rollout(1, score=None, reason="timeout")]
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    (folder / "rollouts" / "kdrl" / "step-000005.jsonl").write_text(lines, encoding="utf-8")
    (folder / "stages" / "0-sft" / "progress.txt").write_text("10 2.5\n20 1.25\n", encoding="utf-8")
    (folder / "stages" / "0-sft" / "done.json").write_text(json.dumps({"eval": evaluation(0.4)}), encoding="utf-8")
    return folder


@pytest.fixture
def finished_folder(run_folder: Path) -> Path:
    before, after = evaluation(0.4), evaluation(0.725)
    summary = {
        "name": "demo", "status": "finished", "steps": 20, "wall_s": 90.0, "tokens": {"generated": 12345, "trained": 1},
        "eval": {"before": before, "after": after, "per_stage": {"sft": before, "kdrl": after}},
        "gap": {"mean": 1e-7, "max": 2e-6}, "abstained": 17,
    }  # fmt: skip
    (run_folder / "summary.json").write_text(json.dumps(summary), encoding="utf-8")
    return run_folder
