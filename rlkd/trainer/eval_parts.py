"""A long evaluation, part by part: each part of the problems is kept once it is judged, so that a kill costs one."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from reward.verdict import Verdict
from rlkd.data.rows import Row, write_rows
from rlkd.records import Prompt, Rollout, RolloutGroup
from rlkd.trainer.context import Run

PART = 1024  # problems; an engine's deadline is that of a part


def measure_in_parts(run: Run, label: str, place: Path) -> tuple[list[RolloutGroup], list[Verdict]]:
    """Rollouts of every held-out problem and their verdicts. What ``place`` holds is not sampled again."""
    groups: list[RolloutGroup] = []
    verdicts: list[Verdict] = []
    assert run.rollouts is not None
    with run.console.bar(label, len(run.eval_prompts)) as bar:
        for start in range(0, len(run.eval_prompts), PART):
            prompts = run.eval_prompts[start : start + PART]
            kept = place / f"{start:06d}-{start + len(prompts):06d}.jsonl"
            if not kept.is_file():
                write_rows(kept, _rows(*run.measure(run.rollouts, prompts)))
            found, judged = _read(kept, prompts)
            groups += found
            verdicts += judged
            right = sum(verdict.score == 1.0 for verdict in verdicts)
            bar.update(start + len(prompts), f"{right:,} of {len(verdicts):,} samples right")
    return groups, verdicts


def _rows(groups: Sequence[RolloutGroup], verdicts: Sequence[Verdict]) -> list[Row]:
    """A row a problem: its rollouts, each with its verdict. Nothing reads log-probs here, so they are left out."""
    left = iter(verdicts)
    return [
        {"samples": [[{**asdict(each), "rollout_logprobs": []}, next(left).to_json()] for each in group.rollouts]}
        for group in groups
    ]


def _read(path: Path, prompts: Sequence[Prompt]) -> tuple[list[RolloutGroup], list[Verdict]]:
    with path.open(encoding="utf-8") as stream:
        rows = [json.loads(line)["samples"] for line in stream]
    groups = [
        RolloutGroup(prompt, tuple(_rollout(rollout) for rollout, _ in samples))
        for prompt, samples in zip(prompts, rows, strict=True)
    ]
    return groups, [Verdict.from_json(verdict) for samples in rows for _, verdict in samples]


def _rollout(row: Row) -> Rollout:
    return Rollout(**{**row, "completion_ids": tuple(row["completion_ids"]), "rollout_logprobs": ()})
