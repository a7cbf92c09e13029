"""Frozen records that flow one way: prompts -> rollouts -> scored rollouts -> learner."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

FinishReason = Literal["stop", "length"]


@dataclass(frozen=True)
class Example:
    """One problem. ``fields`` is what the verifier sees beside the answer (options, task entry, ...)."""

    id: str
    question: str
    answer: Any
    solution: str | None = None
    fields: Mapping[str, Any] = field(default_factory=dict)

    def for_verifier(self) -> dict[str, Any]:
        """The mapping that a verifier receives."""
        return {**self.fields, "id": self.id, "question": self.question, "answer": self.answer}


@dataclass(frozen=True)
class Prompt:
    """A rendered prompt: the chat template was applied once, here; ``token_ids`` are what every engine sees."""

    example: Example
    text: str
    token_ids: tuple[int, ...]


@dataclass(frozen=True)
class Rollout:
    """One sampled completion, token in and token out.

    ``rollout_logprobs`` are nats of ``completion_ids`` under the weights that sampled them, at the sampling
    temperature. ``min_version`` and ``max_version`` bound the ``policy_version`` of the tokens.
    """

    completion_ids: tuple[int, ...]
    rollout_logprobs: tuple[float, ...]
    finish_reason: FinishReason
    text: str
    seed: int
    min_version: int
    max_version: int

    @property
    def truncated(self) -> bool:
        """Whether the completion hit the token limit."""
        return self.finish_reason == "length"


@dataclass(frozen=True)
class RolloutGroup:
    """All rollouts of one prompt."""

    prompt: Prompt
    rollouts: tuple[Rollout, ...]


@dataclass(frozen=True)
class TrainRow:
    """One rollout as the learner sees it: tokens and signals. Tuples are aligned with ``completion_ids``."""

    group: int
    prompt_ids: tuple[int, ...]
    completion_ids: tuple[int, ...]
    rollout_logprobs: tuple[float, ...]
    advantage: float
    index: int = -1  # place in the step's flat order of rollouts
    trained: bool = True  # false: no token of it is trained (abstained, masked truncation)
    distilled: bool = True  # false: the teacher does not pull here
    teacher_logprobs: tuple[float, ...] | None = None
    staleness: int = 0
