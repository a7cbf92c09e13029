"""A teacher behind a vLLM server: prompt log-probs over the OpenAI-compatible completions API."""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from rlkd.errors import TeacherError
from rlkd.recipe.privileged import ServerTeacher
from rlkd.records import TopK

Sequences = Sequence[tuple[Sequence[int], Sequence[int]]]
_RETRIED = (408, 425, 429, 500, 502, 503, 504)


class ServerTeacherWorker:
    """Runs inside a Ray actor; token ids in, token log-probs out, so that no text is ever encoded twice."""

    def __init__(self, spec: ServerTeacher) -> None:
        from openai import OpenAI

        self.spec = spec
        self.client = OpenAI(
            base_url=spec.url,
            api_key=os.environ.get(spec.api_key_env) or "none",  # a server without keys ignores it
            timeout=spec.timeout_s,
            max_retries=spec.tries - 1,
        )

    def score(self, sequences: Sequences) -> list[list[float]]:
        """Log-probabilities (nats, temperature 1) of each completion given its prompt."""
        found = []
        for (_, completion), entries in zip(sequences, self._all(sequences, 0), strict=True):
            pairs = zip(entries, completion, strict=True)
            found.append([_logprob(entry, token) for entry, token in pairs])
        return found

    def top_k(self, sequences: Sequences, *, k: int) -> list[TopK]:
        """The k most likely entries before each completion token."""
        views = []
        for entries in self._all(sequences, k):
            best = [_best(entry, k) for entry in entries]
            ids = tuple(tuple(token for token, _ in line) for line in best)
            views.append(TopK(ids, tuple(tuple(value for _, value in line) for line in best)))
        return views

    def _all(self, sequences: Sequences, count: int) -> list[list[dict[str, Any]]]:
        with ThreadPoolExecutor(self.spec.concurrency) as pool:
            return list(pool.map(lambda pair: self._ask(pair[0], pair[1], count), sequences))

    def _ask(self, prompt: Sequence[int], completion: Sequence[int], count: int) -> list[dict[str, Any]]:
        """One entry per completion token. Raises: TeacherError naming the server and what it said."""
        entries = self._request([*prompt, *completion], count)
        if not entries:
            raise TeacherError(
                f"teacher.url: {self.spec.url} returns no prompt_logprobs; it must be a vLLM server "
                "(`vllm serve`), whose completions API has them"
            )
        if len(entries) != len(prompt) + len(completion):
            raise TeacherError(
                f"teacher.url: {self.spec.url} scored {len(entries)} tokens of {len(prompt) + len(completion)}: it "
                "added special tokens, or its context is too short"
            )
        return [entry or {} for entry in entries[len(prompt) :]]

    def _request(self, ids: list[int], count: int) -> list[dict[str, Any] | None]:
        import openai

        try:
            reply = self.client.completions.create(
                model=self.spec.model,
                prompt=ids,
                max_tokens=1,
                temperature=1.0,
                extra_body={"prompt_logprobs": count},
            )
        except openai.APIStatusError as error:
            said = str(error)[:300]
            raise TeacherError(f"teacher.url: {self.spec.url} answered {error.status_code}: {said}") from error
        except openai.OpenAIError as error:
            raise TeacherError(
                f"teacher.url: {self.spec.url} cannot be used after {self.spec.tries} tries of "
                f"{self.spec.timeout_s:g} s ({type(error).__name__}: {error}); is the server up, and teacher.timeout_s "
                "long enough?"
            ) from error
        found = (reply.choices[0].model_extra or {}) if reply.choices else {}
        return list(found.get("prompt_logprobs") or [])


def _logprob(entry: dict[str, Any], token: int) -> float:
    found = entry.get(str(token))
    if found is None:
        raise TeacherError(f"the teacher's server left token {token} out of its prompt_logprobs: {list(entry)[:5]}")
    return float(found["logprob"])


def _best(entry: dict[str, Any], k: int) -> list[tuple[int, float]]:
    """By rank: the sampled token stands in the entry too, whatever its rank."""
    ranked = sorted(entry.items(), key=lambda item: int(item[1]["rank"]))[:k]
    if len(ranked) < k:
        raise TeacherError(
            f"the teacher's server returned {len(ranked)} of {k} entries; start it with --max-logprobs {k}"
        )
    return [(int(token), float(value["logprob"])) for token, value in ranked]
