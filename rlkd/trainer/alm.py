"""Cross-tokenizer distillation on the policy's own samples: the teacher re-encodes their text and scores it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from rlkd.data.prompt import PromptBuilder
from rlkd.data.token_bytes import TokenBytes, token_bytes
from rlkd.divergences import Chunk, align_chunks, byte_spans, merge_uncertain
from rlkd.models import load_tokenizer
from rlkd.preflight import where_of
from rlkd.recipe.data import DataSpec
from rlkd.recipe.objectives import AlmObjective
from rlkd.records import Chunks, Prompt, Rollout, TrainRow
from rlkd.trainer.assemble import Judged, train_rows
from rlkd.trainer.foreign import foreign_builder
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
    policy_bytes: TokenBytes
    teacher_bytes: TokenBytes

    @classmethod
    def of(cls, policy: Any, teacher: Any, *, where: str) -> Aligner:
        """Args: where: the teacher's section, for errors."""
        return cls(policy, teacher, token_bytes(policy, where="policy"), token_bytes(teacher, where=where))

    def align(self, teacher_prompt: Sequence[int], rollout: Rollout) -> Aligned | str:
        """The chunks, or the reason why there are none. The end-of-turn tokens are a chunk of their own."""
        ids = list(rollout.completion_ids)
        ended = bool(ids) and ids[-1] == self.policy.eos_token_id
        said = ids[:-1] if ended else ids
        text = str(self.policy.decode(said, skip_special_tokens=True))
        if not text:
            return NO_TEXT
        theirs = list(self.teacher(text, add_special_tokens=False)["input_ids"])
        pieces = [self.teacher_bytes(token) for token in theirs], [self.policy_bytes(token) for token in said]
        if any(b"".join(side) != text.encode("utf-8") for side in pieces):
            return BROKEN
        spans = [byte_spans([len(piece) for piece in side]) for side in pieces]
        chunks = align_chunks(teacher_spans=spans[0], policy_spans=spans[1])
        policy, teacher = [c.policy for c in chunks], [c.teacher for c in chunks]
        if ended:
            policy.append((len(said), len(said) + 1))
            teacher.append((len(theirs), len(theirs) + 1))
            theirs.append(self.teacher.eos_token_id)
        return Aligned(tuple(teacher_prompt), tuple(theirs), tuple(policy), tuple(teacher))


@dataclass(frozen=True)
class Reader:
    """A teacher's side of the text: its prompts, and its tokens under the policy's."""

    builder: PromptBuilder
    aligner: Aligner


def read_teachers(folders: Mapping[str, Path], policy: Any, data: DataSpec) -> dict[str, Reader]:
    """Readers by teacher's name.

    Raises: RecipeError for a teacher without a chat template or an end of sequence, TeacherError for a tokenizer (the
        teacher's or ``policy``) whose tokens don't spell their bytes.
    """
    found = {}
    for name, folder in folders.items():
        tokenizer, where = load_tokenizer(folder), where_of(name)
        builder = foreign_builder(tokenizer, data, where=where)
        found[name] = Reader(builder, Aligner.of(policy, tokenizer, where=where))
    return found


@dataclass(frozen=True, kw_only=True)
class AlmPlan(StepPlan):
    """Rows carry chunks; a completion that cannot be laid over the teacher's tokens is left out and counted."""

    teacher: TeacherPanel
    readers: Mapping[str, Reader]

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
        reader = self.readers[name]
        found = reader.aligner.align(reader.builder.prompt(prompt.example).token_ids, rollout)
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
