"""Sampled rollouts, kept as they were trained on: text, score, advantage and every token's log-probs."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rlkd.recipe.schema import LogSpec
from rlkd.records import TrainRow
from rlkd.trainer.assemble import Judged


class RolloutLog:
    """``rollouts/<stage>/step-000005.jsonl``: one rollout a line, whole groups, first groups of the step."""

    def __init__(self, folder: Path, spec: LogSpec, tokenizer: Any) -> None:
        self.folder, self.spec, self.tokenizer = folder, spec, tokenizer

    def wanted(self, step: int) -> int:
        """How many rollouts of a step are kept: some of the first step and of every ``rollouts_every``-th."""
        return self.spec.rollouts_kept if step == 1 or step % self.spec.rollouts_every == 0 else 0

    def write(
        self,
        step: int,
        judged: Judged,
        rows: list[TrainRow],
        policy_logprobs: Mapping[int, list[float]],
        notes: Mapping[int, Mapping[str, Any]],
    ) -> None:
        """Keep the step's first rollouts, when it is due."""
        count = min(self.wanted(step), len(judged.verdicts))
        if not count:
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        target = self.folder / f"step-{step:06d}.jsonl"
        half = target.with_suffix(".tmp")
        with half.open("w", encoding="utf-8") as stream:
            for index in range(count):
                record = self._record(step, index, judged, rows)
                record["policy_logprobs"] = policy_logprobs.get(index)
                record |= notes.get(index, {})
                stream.write(json.dumps(record, ensure_ascii=False) + "\n")
        half.replace(target)

    def _record(self, step: int, index: int, judged: Judged, rows: list[TrainRow]) -> dict[str, Any]:
        row, verdict = rows[index], judged.verdicts[index]
        flat = [(group, rollout) for group in judged.groups for rollout in group.rollouts]
        group, rollout = flat[index]
        return {
            "step": step,
            "group": row.group,
            "id": group.prompt.example.id,
            "prompt": group.prompt.text,
            "teacher_prompt": group.prompt.privileged.text if group.prompt.privileged else None,
            "sampled_from": "teacher_prompt" if row.prompt_ids != group.prompt.token_ids else "prompt",
            "completion": rollout.text,
            "answer": group.prompt.example.answer,
            "parsed": verdict.parsed,
            "score": verdict.score,
            "reason": verdict.reason,
            "advantage": row.advantage,
            "trained": row.trained,
            "distilled": row.distilled,
            "finish_reason": rollout.finish_reason,
            "seed": rollout.seed,
            "min_version": rollout.min_version,
            "max_version": rollout.max_version,
            "staleness": row.staleness,
            "tokens": self.tokenizer.convert_ids_to_tokens(list(row.completion_ids)),
            "token_ids": list(row.completion_ids),
            "rollout_logprobs": list(row.rollout_logprobs),
            "teacher_logprobs": list(row.teacher_logprobs) if row.teacher_logprobs is not None else None,
        }
