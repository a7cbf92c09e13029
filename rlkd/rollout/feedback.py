"""Feedback on attempts: from the verdict by rule, or from a judge model behind an OpenAI-compatible server."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from typing import Protocol

from reward.text import after_thinking
from reward.verdict import Verdict
from rlkd.data.prompt import fill
from rlkd.errors import RolloutError
from rlkd.recipe.privileged import JudgeFeedback, RuleFeedback
from rlkd.records import Example
from rlkd.served import ReplyError, first_choice, open_client


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
        self.spec = spec
        self.client = open_client(spec)

    def comment(self, attempts: Sequence[Attempt]) -> list[str | None]:
        """Raises: RolloutError as soon as more than ``max_failed`` of the requests have failed; it names the server
        and a reason.
        """
        import openai

        found: list[str | None] = [None] * len(attempts)
        failed = 0
        pool = ThreadPoolExecutor(self.spec.concurrency)
        try:
            calls = {pool.submit(self._one, attempt): index for index, attempt in enumerate(attempts)}
            for call in as_completed(calls):
                try:
                    found[calls[call]] = call.result()
                except (openai.OpenAIError, ReplyError) as error:
                    failed += 1
                    if failed > self.spec.max_failed * len(attempts):
                        raise RolloutError(self._failure(failed, len(attempts), error)) from error
        finally:
            pool.shutdown(wait=False, cancel_futures=True)  # a server that hangs is not waited for
        return found

    def _failure(self, failed: int, total: int, error: Exception) -> str:
        return (
            f"feedback.source.url: {self.spec.url} failed in {failed} of {total} requests (last: "
            f"{type(error).__name__}: {error}); allowed share: feedback.source.max_failed {self.spec.max_failed:g}. "
            f"Is the server up, and timeout_s ({self.spec.timeout_s:g}) long enough?"
        )

    def _one(self, attempt: Attempt) -> str:
        """What the judge says beside its thinking, which may hold the gold answer."""
        answer = f"\n\nReference answer (never reveal it): {attempt.example.answer}" if self.spec.show_answer else ""
        task = f"Problem:\n{attempt.example.question}{answer}\n\nAttempt:\n{attempt.text}"
        reply = self.client.chat.completions.with_raw_response.create(
            model=self.spec.model,
            max_tokens=self.spec.max_tokens,
            temperature=0.0,
            messages=[{"role": "system", "content": self.spec.instructions}, {"role": "user", "content": task}],
        )
        choice = first_choice(reply.text)
        message = choice.get("message")
        content = message.get("content") if isinstance(message, dict) else None
        said = (after_thinking(content) or "").strip() if isinstance(content, str) else ""
        if not said:
            raise ReplyError(
                f"it says nothing beside its thinking (finish_reason {choice.get('finish_reason')!r}); is "
                f"feedback.source.max_tokens ({self.spec.max_tokens}) enough?"
            )
        return said
