"""Traces sampled by a served model: synthetic chains of thought, temperatures, and mixed-policy continuation."""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

from pydantic import Field, SkipValidation

from rlkd.data.curate.perplexity import RenderPrompt, question_prompt
from rlkd.data.curate.step import MODEL_ROWS, STEPS, Decision, Removal, Step, TraceStep
from rlkd.data.rows import Row
from rlkd.data.text import text_key
from rlkd.errors import MissingExtraError, TeacherError


@dataclass(frozen=True)
class Completion:
    """Sampled text, its length in tokens, and whether it ended by itself (False: cut off by the limit)."""

    text: str
    tokens: int
    finished: bool


class Sampler(Protocol):
    """Continues rendered prompts. ``max_tokens`` is one limit a prompt."""

    def __call__(
        self, prompts: Sequence[str], *, max_tokens: Sequence[int], temperature: float, seed: int
    ) -> Sequence[Completion]: ...


class ServedSampler:
    """Samples from an OpenAI-compatible completions server (``vllm serve``), several requests at a time.

    The key is read from the environment variable ``key_variable``; it never stands in a recipe or a report.
    ``rendered``: prompts come from a chat template, which wrote every special token; the server must add none.
    """

    def __init__(
        self,
        base_url: str,
        model: str,
        *,
        key_variable: str = "OPENAI_API_KEY",
        concurrency: int = 16,
        timeout_s: float = 600.0,
        retries: int = 5,
        stop: Sequence[str] = (),
        rendered: bool = False,
    ) -> None:
        try:
            from openai import OpenAI
        except ImportError as error:
            raise MissingExtraError("a served teacher needs openai: pip install 'rlkd[train]'") from error
        key = os.environ.get(key_variable, "none")  # a local server asks for none, the client insists on one
        self._client = OpenAI(base_url=base_url, api_key=key, timeout=timeout_s, max_retries=retries)
        self.model, self.concurrency, self.stop = model, concurrency, list(stop)
        self._extra = {"add_special_tokens": False} if rendered else None

    def __call__(
        self, prompts: Sequence[str], *, max_tokens: Sequence[int], temperature: float, seed: int
    ) -> list[Completion]:
        jobs = [(prompt, limit, seed + at) for at, (prompt, limit) in enumerate(zip(prompts, max_tokens, strict=True))]
        with ThreadPoolExecutor(self.concurrency) as pool:
            return list(pool.map(lambda job: self._one(*job, temperature=temperature), jobs))

    def _one(self, prompt: str, max_tokens: int, seed: int, *, temperature: float) -> Completion:
        import openai

        try:
            answer = self._client.completions.create(
                model=self.model,
                prompt=prompt,
                max_tokens=max_tokens,
                temperature=temperature,
                seed=seed,
                stop=self.stop or None,
                extra_body=self._extra,
            )
        except openai.OpenAIError as error:
            raise TeacherError(
                f"the server at {self._client.base_url} failed ({error}); what is done stays, the same command goes on"
            ) from error
        choice = answer.choices[0]
        if answer.usage is None:
            raise TeacherError(f"the teacher at {self._client.base_url} reports no token usage")
        return Completion(choice.text, answer.usage.completion_tokens, choice.finish_reason != "length")


@STEPS.register("generate_traces")
class GenerateTraces(Step):
    """Add ``count`` traces of the sampler to every row (synthetic chains of thought).

    The prompt that elicits may differ from the prompt that is trained (prompt internalisation, 2410.18588): ``prompt``
    renders only the former. A trace that was cut off is kept with ``finished`` false; ``structure_filter`` drops it.
    """

    kind: ClassVar[str] = "generate_traces"
    rows_at_once: ClassVar[int | None] = MODEL_ROWS
    count: int = Field(default=1, ge=1)
    temperature: float = Field(default=0.6, ge=0.0)
    max_tokens: int = Field(ge=1)
    model: str
    seed: int = 0
    sampler: SkipValidation[Sampler] = Field(exclude=True)
    prompt: SkipValidation[RenderPrompt] = Field(default=question_prompt, exclude=True)

    def decide(self, rows: Sequence[Row]) -> list[Decision]:
        prompts = [self.prompt(row) for row in rows for _ in range(self.count)]
        first = int.from_bytes(text_key(f"{self.seed} {prompts[0]}")[:4], "big") if prompts else 0
        limits = [self.max_tokens] * len(prompts)
        made = iter(self.sampler(prompts, max_tokens=limits, temperature=self.temperature, seed=first))
        return [Decision(self._with_traces(row, [next(made) for _ in range(self.count)])) for row in rows]

    def _with_traces(self, row: Row, made: Sequence[Completion]) -> Row:
        new = [
            {
                "text": each.text,
                "model": self.model,
                "temperature": self.temperature,
                "tokens": each.tokens,
                "finished": each.finished,
            }
            for each in made
        ]
        return {**row, "traces": [*row.get("traces", []), *new]}


@STEPS.register("temperature_filter")
class TemperatureFilter(TraceStep):
    """Keep only traces sampled at one temperature: the data of one stage of temperature-scheduled SFT.

    Source: DASD (2601.09088): stage 1 on samples at 0.6, then stage 2 from that checkpoint on samples at 1.0.
    """

    kind: ClassVar[str] = "temperature_filter"
    temperature: float = Field(ge=0.0)

    def judge(self, trace: Row) -> Removal | None:
        found = trace.get("temperature")
        return None if found == self.temperature else Removal("another temperature", {"temperature": found})


@STEPS.register("mixed_policy")
class MixedPolicy(Step):
    """Where the student's own answer runs over, cut it at random and let the teacher go on from there.

        student answers x, at most stretch * len(teacher's answer) tokens;   keep those that were cut off
        c ~ Uniform(len / 2, len);   trace = student[:c] + teacher's continuation

    Rows on which the student finishes are dropped, as in the paper. Loss covers prefix and continuation (masking the
    prefix hurt: AIME24 80.8 against 83.3). Filter the result as any other trace.
    Source: DASD (2601.09088), mixed-policy distillation; stretch 1.5. Differs: the cut falls on a token border of
    ``token_offsets``, the student's tokenizer, and the prefix is passed on as text.
    """

    kind: ClassVar[str] = "mixed_policy"
    rows_at_once: ClassVar[int | None] = MODEL_ROWS
    stretch: float = Field(default=1.5, gt=0.0)
    max_continuation: int = Field(ge=1)
    temperature: float = Field(default=1.0, ge=0.0)
    seed: int = 0
    student: SkipValidation[Sampler] = Field(exclude=True)
    teacher: SkipValidation[Sampler] = Field(exclude=True)
    token_offsets: SkipValidation[Callable[[str], Sequence[tuple[int, int]]]] = Field(exclude=True)
    prompt: SkipValidation[RenderPrompt] = Field(default=question_prompt, exclude=True)
    teacher_prompt: SkipValidation[RenderPrompt | None] = Field(default=None, exclude=True)

    def decide(self, rows: Sequence[Row]) -> list[Decision]:
        usable = [row for row in rows if row.get("traces")]
        prompts = [self.prompt(row) for row in usable]
        limits = [max(1, round(self.stretch * len(self.token_offsets(row["traces"][0]["text"])))) for row in usable]
        answers = self._sample(self.student, prompts, limits)
        over = {
            id(row): self._cut(row, answer) for row, answer in zip(usable, answers, strict=True) if not answer.finished
        }
        cut = [row for row in usable if id(row) in over]
        asked = self.teacher_prompt or self.prompt  # each model is asked in its own chat template
        onward = [asked(row) + over[id(row)] for row in cut]
        continued = self._sample(self.teacher, onward, [self.max_continuation] * len(cut))
        done = {id(row): self._trace(over[id(row)], more) for row, more in zip(cut, continued, strict=True)}
        return [self._decision(row, done.get(id(row))) for row in rows]

    def _sample(self, sampler: Sampler, prompts: Sequence[str], limits: Sequence[int]) -> Sequence[Completion]:
        if not prompts:
            return []
        seed = int.from_bytes(text_key(f"{self.seed} {prompts[0]}")[:4], "big")
        return sampler(prompts, max_tokens=limits, temperature=self.temperature, seed=seed)

    def _cut(self, row: Row, answer: Completion) -> str:
        offsets = self.token_offsets(answer.text)
        rng = random.Random(text_key(f"{self.seed} {row['question']}"))
        tokens = rng.randint(len(offsets) // 2, len(offsets))
        return answer.text[: offsets[tokens - 1][1]] if tokens else ""

    def _trace(self, prefix: str, more: Completion) -> Row:
        return {"text": prefix + more.text, "model": "mixed", "student_chars": len(prefix), "finished": more.finished}

    def _decision(self, row: Row, trace: dict[str, Any] | None) -> Decision:
        if not row.get("traces"):
            return Decision.drop("no teacher trace to set the length limit")
        return Decision.drop("student finishes") if trace is None else Decision({**row, "traces": [trace]})
