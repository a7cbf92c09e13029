"""What one RL step tells: seconds of its parts, reward and lengths of its rollouts, the line on the console."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from reward.verdict import Verdict
from rlkd.records import TrainRow
from rlkd.trainer.assemble import Judged


class Clock:
    """Seconds of each part of a step."""

    def __init__(self) -> None:
        self.begun = self.last = time.perf_counter()
        self.seconds: dict[str, float] = {}

    def lap(self, name: str) -> None:
        now = time.perf_counter()
        self.seconds[name] = now - self.last
        self.last = now

    @property
    def total(self) -> float:
        return time.perf_counter() - self.begun


def outcome(judged: Judged, rows: Sequence[TrainRow]) -> dict[str, float]:
    """Reward, pass rate, lengths and the share of groups without contrast."""
    rows = rows[: len(judged.verdicts)]  # what follows are further views and turns of the same rollouts
    scored = [v for v in judged.verdicts if v.score is not None]
    scores = [float(v.score or 0.0) for v in scored]
    lengths = [len(row.completion_ids) for row in rows]
    index, flat = 0, 0
    for group in judged.groups:
        found: list[Verdict] = judged.verdicts[index : index + len(group.rollouts)]
        index += len(group.rollouts)
        flat += len({v.score for v in found if v.score is not None}) <= 1
    truncated = sum(r.truncated for group in judged.groups for r in group.rollouts)
    return {
        "reward": sum(float(v.reward or 0.0) for v in scored) / max(1, len(scored)),
        "pass_rate": sum(score >= 1.0 for score in scores) / max(1, len(scores)),
        "abstained": float(len(judged.verdicts) - len(scored)),
        "completion_tokens": sum(lengths) / max(1, len(lengths)),
        "truncated": truncated / max(1, len(rows)),
        "zero_variance_groups": flat / max(1, len(judged.groups)),
        "staleness": max(row.staleness for row in rows),
    }


def headline(row: dict[str, Any]) -> str:
    """The step in a line."""
    parts = [f"reward {row['reward']:.3f}", f"pass {row['pass_rate']:.0%}", f"len {row['completion_tokens']:.0f}"]
    if "kl_to_teacher" in row:
        parts.append(f"KL {row['kl_to_teacher']:.3f}")
    parts += [f"H {row.get('entropy', 0.0):.2f}", f"gap {row.get('rollout_policy_logprob_gap/mean', 0.0):.0e}"]
    return "  ".join([*parts, f"{row['tokens_per_s']:,.0f} tok/s"])
