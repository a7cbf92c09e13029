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
class PrivilegedPrompt:
    """What only the teacher sees: a rendered prompt with the privileged text in it."""

    text: str
    token_ids: tuple[int, ...]
    privileged: str  # the text that is in it, after any cut
    truncated: bool = False


@dataclass(frozen=True)
class Prompt:
    """A rendered prompt: the chat template was applied once, here; ``token_ids`` are what every engine sees."""

    example: Example
    text: str
    token_ids: tuple[int, ...]
    privileged: PrivilegedPrompt | None = None

    @property
    def teacher_ids(self) -> tuple[int, ...]:
        """What the teacher sees: the privileged prompt where there is one."""
        return self.privileged.token_ids if self.privileged else self.token_ids


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
class HiddenStates:
    """A teacher's final hidden state before each completion token; the learner applies the teacher's head."""

    values: Any  # [C, E] tensor, on the CPU
    teacher: str = "teacher"  # whose head


@dataclass(frozen=True)
class TopK:
    """A teacher's k most likely entries before each completion token, and their log-probs over its whole vocabulary."""

    ids: tuple[tuple[int, ...], ...]
    logprobs: tuple[tuple[float, ...], ...]


@dataclass(frozen=True)
class Chunks:
    """Pieces of text that policy and another tokenizer's teacher both end: policy token ranges, teacher log-probs.

    ``teacher_boundary``: log-mass that the teacher puts on the piece being over; empty without debiasing. Where a
    completion ends there is nothing to be over: 0.
    """

    ranges: tuple[tuple[int, int], ...]
    teacher_logprobs: tuple[float, ...]
    teacher_boundary: tuple[float, ...] = ()


# Which term of the objective a row belongs to:
#   sampled:  the completion was sampled from exactly this prompt; policy gradient and distillation
#   bare:     sampled with privileged information, scored without it (pi-Distill's student)
#   revision: a second-turn answer on the first turn's prompt (RLTF-SD)
#   critique: feedback on the critic's prompt (RLTF-FM)
#   right, wrong: a given trace of an offline pair; ``group`` is the pair
Term = Literal["sampled", "bare", "revision", "critique", "right", "wrong"]


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
    term: Term = "sampled"
    teacher_prompt_ids: tuple[int, ...] | None = None  # the same completion's other context (self-teacher)
    teacher_view: HiddenStates | TopK | Chunks | None = None  # what a separate teacher sent beside log-probs
