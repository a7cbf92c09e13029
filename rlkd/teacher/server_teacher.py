"""A teacher behind a vLLM server: prompt log-probs over the OpenAI-compatible completions API."""

from __future__ import annotations

import math
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from rlkd.errors import TeacherError
from rlkd.recipe.privileged import ServerTeacher
from rlkd.records import TopK
from rlkd.served import ReplyError, first_choice, open_client

Sequences = Sequence[tuple[Sequence[int], Sequence[int]]]


class ServerTeacherWorker:
    """Runs inside a Ray actor; token ids in, token log-probs out, so that no text is ever encoded twice."""

    def __init__(self, spec: ServerTeacher) -> None:
        self.spec = spec
        self.client = open_client(spec)

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

    def spelled(self, sequences: Sequences) -> list[list[str | None]]:
        """The server's own text of each completion token; None where it sends none."""
        found = []
        for (_, completion), entries in zip(sequences, self._all(sequences, 0), strict=True):
            texts = [
                (entry.get(str(token)) or {}).get("decoded_token")
                for entry, token in zip(entries, completion, strict=True)
            ]
            found.append(texts)
        return found

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
        return [entry if isinstance(entry, dict) else {} for entry in entries[len(prompt) :]]

    def _request(self, ids: list[int], count: int) -> list[dict[str, Any] | None]:
        import openai

        try:
            reply = self.client.completions.with_raw_response.create(
                model=self.spec.model,
                prompt=ids,
                max_tokens=1,
                temperature=1.0,
                extra_body={"prompt_logprobs": count},
            )
            found = first_choice(reply.text).get("prompt_logprobs")
        except openai.APIStatusError as error:
            said = str(error)[:300]
            raise TeacherError(f"teacher.url: {self.spec.url} answered {error.status_code}: {said}") from error
        except openai.OpenAIError as error:
            raise TeacherError(
                f"teacher.url: {self.spec.url} cannot be used after {self.spec.tries} tries of "
                f"{self.spec.timeout_s:g} s ({type(error).__name__}: {error}); is the server up, and teacher.timeout_s "
                "long enough?"
            ) from error
        except ReplyError as error:
            raise TeacherError(f"teacher.url: {self.spec.url}: {error}; is it a vLLM server's /v1?") from error
        return found if isinstance(found, list) else []


def _logprob(entry: dict[str, Any], token: int) -> float:
    found = entry.get(str(token))
    if found is None:
        raise TeacherError(f"the teacher's server left token {token} out of its prompt_logprobs: {list(entry)[:5]}")
    return _number(found, "logprob")


def _best(entry: dict[str, Any], k: int) -> list[tuple[int, float]]:
    """By rank: the sampled token stands in the entry too, whatever its rank."""
    ranked = sorted(entry.items(), key=lambda item: _number(item[1], "rank"))[:k]
    if len(ranked) < k:
        raise TeacherError(
            f"the teacher's server returned {len(ranked)} of {k} entries; start it with --max-logprobs {k}"
        )
    return [(int(token), _number(value, "logprob")) for token, value in ranked]


def _number(entry: Any, name: str) -> float:
    found = entry.get(name) if isinstance(entry, dict) else None
    if not isinstance(found, int | float) or not math.isfinite(found):
        raise TeacherError(f"the teacher's server sent no finite {name} for a token of its prompt_logprobs: {entry}")
    return float(found)
