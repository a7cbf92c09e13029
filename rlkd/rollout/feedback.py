"""Feedback on attempts: from the verdict by rule, or from a judge model behind an OpenAI-compatible server."""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Protocol

from reward.verdict import Verdict
from rlkd.data.prompt import fill
from rlkd.errors import RolloutError
from rlkd.recipe.privileged import JudgeFeedback, RuleFeedback
from rlkd.records import Example


@dataclass(frozen=True)
class Attempt:
    """What is commented on."""

    example: Example
    text: str
    verdict: Verdict


class FeedbackSource(Protocol):
    """Comments on attempts; None where it could not."""

    def comment(self, attempts: Sequence[Attempt]) -> list[str | None]: ...


def build_feedback(spec: RuleFeedback | JudgeFeedback) -> FeedbackSource:
    """The recipe's source."""
    return RuleCritic(spec) if isinstance(spec, RuleFeedback) else JudgeCritic(spec)


@dataclass(frozen=True)
class RuleCritic:
    """One sentence from the verdict."""

    spec: RuleFeedback

    def comment(self, attempts: Sequence[Attempt]) -> list[str | None]:
        return [self._one(attempt) for attempt in attempts]

    def _one(self, attempt: Attempt) -> str | None:
        verdict, example = attempt.verdict, attempt.example
        if verdict.score is None:
            return None
        fields = {name: value for name, value in example.fields.items() if isinstance(value, str)}
        hint = fill(self.spec.hint, fields | {"answer": str(example.answer), "solution": example.solution or ""})
        right = verdict.score >= 1.0
        template = self.spec.right if right else self.spec.wrong if verdict.parsed else self.spec.unparsed
        return fill(template, {"parsed": verdict.parsed or "", "hint": hint}).strip()


class JudgeCritic:
    """Asks a model. A request that fails gives no feedback and is counted; too many of them stop the run."""

    def __init__(self, spec: JudgeFeedback) -> None:
        from openai import OpenAI

        self.spec = spec
        self.client = OpenAI(
            base_url=spec.url,
            api_key=os.environ.get(spec.api_key_env) or "none",  # a server without keys ignores it
            timeout=spec.timeout_s,
            max_retries=spec.tries - 1,
        )

    def comment(self, attempts: Sequence[Attempt]) -> list[str | None]:
        """Raises: RolloutError when more than ``max_failed`` of the requests fail; it names the server and a reason."""
        with ThreadPoolExecutor(self.spec.concurrency) as pool:
            found = list(pool.map(self._one, attempts))
        failed = [item for item in found if isinstance(item, Exception)]
        if attempts and len(failed) > self.spec.max_failed * len(attempts):
            raise RolloutError(
                f"feedback.source.url: {self.spec.url} failed in {len(failed)} of {len(attempts)} requests (first: "
                f"{type(failed[0]).__name__}: {failed[0]}); allowed share: feedback.source.max_failed "
                f"{self.spec.max_failed:g}. Is the server up, and timeout_s ({self.spec.timeout_s:g}) long enough?"
            )
        return [item if isinstance(item, str) else None for item in found]

    def _one(self, attempt: Attempt) -> str | Exception | None:
        import openai

        answer = f"\n\nReference answer (never reveal it): {attempt.example.answer}" if self.spec.show_answer else ""
        task = f"Problem:\n{attempt.example.question}{answer}\n\nAttempt:\n{attempt.text}"
        try:
            reply = self.client.chat.completions.create(
                model=self.spec.model,
                max_tokens=self.spec.max_tokens,
                temperature=0.0,
                messages=[{"role": "system", "content": self.spec.instructions}, {"role": "user", "content": task}],
            )
        except openai.OpenAIError as error:
            return error
        text = (reply.choices[0].message.content or "").strip() if reply.choices else ""
        return text or None
