"""Rollout groups for tests of what happens after sampling."""

from __future__ import annotations

from rlkd.records import Example, Prompt, Rollout, RolloutGroup


def group(name: str, lengths: list[int], *, version: int = 0, finish: str = "stop") -> RolloutGroup:
    """A group whose rollouts have the given completion lengths."""
    prompt = Prompt(Example(name, f"question {name}", "1"), f"question {name}", (5, 6, 7))
    rollouts = tuple(
        Rollout(
            completion_ids=tuple(range(10, 10 + length)),
            rollout_logprobs=(-0.5,) * length,
            finish_reason=finish,  # type: ignore[arg-type]
            text="1",
            seed=index,
            min_version=version,
            max_version=version,
        )
        for index, length in enumerate(lengths)
    )
    return RolloutGroup(prompt, rollouts)
