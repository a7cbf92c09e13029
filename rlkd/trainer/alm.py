"""Cross-tokenizer distillation on the policy's own samples: the teacher re-encodes their text and scores it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import torch

from rlkd.data.prompt import PromptBuilder
from rlkd.data.token_bytes import ByteLength, byte_length
from rlkd.divergences import Chunk, align_chunks, byte_spans, merge_uncertain
from rlkd.errors import TeacherError
from rlkd.models import load_tokenizer
from rlkd.recipe.objectives import AlmObjective
from rlkd.records import Chunks, Prompt, Rollout, TrainRow
from rlkd.trainer.assemble import Judged, train_rows
from rlkd.trainer.plan import Figures, StepPlan
from rlkd.trainer.teachers import TeacherPanel

NO_TEXT = "alm_excluded/empty"
BROKEN = "alm_excluded/bytes_differ"  # the sample is no valid UTF-8, or the teacher has no token for a character
LONG = "alm_excluded/teacher_window"


@dataclass(frozen=True)
class Aligned:
    """A completion in the teacher's tokens, and the chunks that both sides end."""

    teacher_prompt: tuple[int, ...]
    teacher_ids: tuple[int, ...]
    policy_ranges: tuple[tuple[int, int], ...]
    teacher_ranges: tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class Aligner:
    """Lays a policy's completion over a teacher's tokenization of the same text."""

    policy: Any
    teacher: Any
    policy_bytes: ByteLength
    teacher_bytes: ByteLength

    @classmethod
    def of(cls, policy: Any, teacher: Any) -> Aligner:
        return cls(policy, teacher, byte_length(policy, where="policy"), byte_length(teacher, where="teacher.model"))

    def align(self, teacher_prompt: Sequence[int], rollout: Rollout) -> Aligned | str:
        """The chunks, or the reason why there are none. The end-of-turn tokens are a chunk of their own."""
        ids = list(rollout.completion_ids)
        ended = bool(ids) and ids[-1] == self.policy.eos_token_id
        said = ids[:-1] if ended else ids
        text = str(self.policy.decode(said, skip_special_tokens=True))
        if not text:
            return NO_TEXT
        theirs = list(self.teacher(text, add_special_tokens=False)["input_ids"])
        spans = [byte_spans([of(t) for t in side]) for of, side in self._sides(theirs, said)]
        size = len(text.encode("utf-8"))
        if any(side[-1][1] != size for side in spans):
            return BROKEN
        chunks = align_chunks(teacher_spans=spans[0], policy_spans=spans[1])
        policy, teacher = [c.policy for c in chunks], [c.teacher for c in chunks]
        if ended:
            policy.append((len(said), len(said) + 1))
            teacher.append((len(theirs), len(theirs) + 1))
            theirs.append(self.teacher.eos_token_id)
        return Aligned(tuple(teacher_prompt), tuple(theirs), tuple(policy), tuple(teacher))

    def _sides(self, theirs: list[int], mine: list[int]) -> list[tuple[ByteLength, list[int]]]:
        return [(self.teacher_bytes, theirs), (self.policy_bytes, mine)]


@dataclass(frozen=True, kw_only=True)
class AlmPlan(StepPlan):
    """Rows carry chunks; a completion that cannot be laid over the teacher's tokens is left out and counted."""

    teacher: TeacherPanel
    tokenizer: Any
    builders: dict[str, PromptBuilder] = field(default_factory=dict)

    @cached_property
    def _aligners(self) -> dict[str, Aligner]:
        found = {}
        for name, folder in self.teacher.folders.items():
            tokenizer = load_tokenizer(folder)
            if tokenizer.eos_token_id is None:
                raise TeacherError(f"teacher ({name}): its tokenizer has no end-of-sequence token")
            self.builders[name] = PromptBuilder(tokenizer, self.recipe.data)
            found[name] = Aligner.of(self.tokenizer, tokenizer)
        return found

    def rows(self, judged: Judged, step: int) -> tuple[list[TrainRow], Figures]:
        del step
        counts: Counter[str] = Counter({NO_TEXT: 0, BROKEN: 0, LONG: 0})
        flat = [(group.prompt, rollout) for group in judged.groups for rollout in group.rollouts]
        aligned: dict[int, tuple[str, Aligned]] = {}
        for index, (prompt, rollout) in enumerate(flat):
            name = self.teacher.route(prompt)
            found = self._align(name, prompt, rollout)
            if isinstance(found, str):
                counts[found] += 1
            else:
                aligned[index] = (name, found)
        views = self._score(aligned)
        rows = [
            replace(row, teacher_view=views.get(row.index), trained=row.trained and row.index in views)
            for row in train_rows(self.recipe, judged)
        ]
        sizes = [len(view.ranges) for view in views.values()]
        figures = {name: float(count) for name, count in counts.items()}
        return rows, figures | {"chunks_per_rollout": sum(sizes) / max(1, len(sizes))}

    def _align(self, name: str, prompt: Prompt, rollout: Rollout) -> Aligned | str:
        aligner = self._aligners[name]
        found = aligner.align(self.builders[name].prompt(prompt.example).token_ids, rollout)
        if isinstance(found, str):
            return found
        window = self.teacher.fleets[name].settings.max_model_len
        return LONG if len(found.teacher_prompt) + len(found.teacher_ids) >= window else found

    def _score(self, aligned: dict[int, tuple[str, Aligned]]) -> dict[int, Chunks]:
        views: dict[int, Chunks] = {}
        for name, fleet in self.teacher.fleets.items():
            mine = {index: item for index, (teacher, item) in aligned.items() if teacher == name}
            if not mine:
                continue
            pairs = [(item.teacher_prompt, item.teacher_ids) for item in mine.values()]
            dealt = fleet.map("score" if self._debias is None else "bounded", pairs)
            for (index, item), answer in zip(mine.items(), dealt.in_order(dealt.results()), strict=True):
                views[index] = _plain(item, answer) if self._debias is None else _debiased(item, answer, self._debias)
        return views

    @property
    def _debias(self) -> float | None:
        objective = self.recipe.objective
        assert isinstance(objective, AlmObjective)
        return objective.debias


def _plain(item: Aligned, logprobs: Sequence[float]) -> Chunks:
    return Chunks(item.policy_ranges, tuple(sum(logprobs[start:end]) for start, end in item.teacher_ranges))


def _debiased(item: Aligned, answer: tuple[Sequence[float], Sequence[float]], threshold: float) -> Chunks:
    """With the teacher's belief that each chunk is over, joined with the next where that is small.

    Args:
        answer: of each teacher token, its log-prob; of its place, the log-mass of tokens that begin a new pre-token.
    """
    logprobs, mass = answer

    def over(end: int) -> float:
        return mass[end] if end < len(mass) else 0.0

    chunks = [Chunk(t, p) for t, p in zip(item.teacher_ranges, item.policy_ranges, strict=True)]
    believed = torch.tensor([over(chunk.teacher[1]) for chunk in chunks], dtype=torch.float64)
    merged = merge_uncertain(chunks, believed, threshold=threshold)
    sums = tuple(sum(logprobs[start:end]) for start, end in (chunk.teacher for chunk in merged))
    return Chunks(tuple(c.policy for c in merged), sums, tuple(over(c.teacher[1]) for c in merged))
