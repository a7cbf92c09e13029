"""Per-token log-probabilities of given text under a model: the one input of perplexity, provenance and density.

Everything works on text and character offsets, so that models with different tokenizers can be compared.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from rlkd.data.chat import render
from rlkd.errors import TeacherError


@dataclass(frozen=True)
class TokenScores:
    """Log-probabilities (nats) of a completion's tokens, and the characters that each token covers."""

    logprobs: tuple[float, ...]
    offsets: tuple[tuple[int, int], ...]

    def __post_init__(self) -> None:
        if len(self.logprobs) != len(self.offsets):
            raise TeacherError(f"{len(self.logprobs)} log-probabilities for {len(self.offsets)} tokens")

    @property
    def mean_logprob(self) -> float:
        """Nats a token; nan for an empty completion."""
        return math.fsum(self.logprobs) / len(self.logprobs) if self.logprobs else math.nan

    @property
    def perplexity(self) -> float:
        """exp(-mean log-probability)."""
        return math.exp(-self.mean_logprob)


class TokenScorer(Protocol):
    """Scores completions given their prompts. Both are text; the prompt is already rendered."""

    def __call__(self, pairs: Sequence[tuple[str, str]]) -> Sequence[TokenScores]: ...


def span_probability(scores: TokenScores, span: tuple[int, int]) -> float | None:
    """exp(mean log-probability) of the tokens that begin within a character span; None when there are none.

    A token that crosses the border belongs to the span in which it begins, so each token counts once.
    """
    begin, end = span
    inside = [logp for logp, (start, _) in zip(scores.logprobs, scores.offsets, strict=True) if begin <= start < end]
    return math.exp(math.fsum(inside) / len(inside)) if inside else None


ScoreIds = Callable[[Sequence[tuple[Sequence[int], Sequence[int]]]], Sequence[Sequence[float]]]


class TextScorer:
    """Text in, log-probabilities and character offsets out, over anything that scores token ids.

    Prompt and completion are encoded apart, so that the border is where sampling saw it.

    Args:
        score_ids: (prompt_ids, completion_ids) pairs -> nats of each completion token at temperature 1, e.g.
            ``TransformersTeacher.score``. Equal prompts should be computed once there.
        tokenizer: a fast tokenizer of that model.
        chat: prompts are user messages, put into the tokenizer's chat template where it has one.
    """

    def __init__(self, score_ids: ScoreIds, tokenizer: Any, *, chat: bool = False) -> None:
        self.score_ids = score_ids
        self.tokenizer = tokenizer
        self.chat = chat and tokenizer.chat_template is not None

    def __call__(self, pairs: Sequence[tuple[str, str]]) -> list[TokenScores]:
        encoded = [self._encode(prompt, completion) for prompt, completion in pairs]
        scores = self.score_ids([(context, ids) for context, ids, _ in encoded if ids])
        found = iter(scores)
        return [TokenScores(tuple(next(found)) if ids else (), offsets) for _, ids, offsets in encoded]

    def _encode(self, prompt: str, completion: str) -> tuple[list[int], list[int], tuple[tuple[int, int], ...]]:
        if self.chat:
            prompt = render(self.tokenizer, [{"role": "user", "content": prompt.strip()}], generate=True)
        context = self.tokenizer(prompt, add_special_tokens=False)["input_ids"]
        if not context:  # the first token needs something before it
            start = self.tokenizer.bos_token_id
            context = [start if start is not None else self.tokenizer.eos_token_id]
        found = self.tokenizer(completion, add_special_tokens=False, return_offsets_mapping=True)
        offsets = tuple((int(begin), int(end)) for begin, end in found["offset_mapping"])
        return list(context), list(found["input_ids"]), offsets


def load_scorer(folder: str | Path, *, tokens_per_batch: int = 4096, chat: bool = False) -> TextScorer:
    """A scorer over a model folder in transformers' format, float32 on the CPU and bfloat16 on a GPU, temperature 1."""
    import torch
    from transformers import AutoTokenizer

    from rlkd.learner.packing import score_sequences
    from rlkd.learner.policy import PackedPolicy, load_causal_lm

    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = load_causal_lm(folder, dtype=torch.bfloat16 if device == "cuda" else torch.float32).to(device)
    policy = PackedPolicy(model.eval().requires_grad_(False))

    def score_ids(sequences: Sequence[tuple[Sequence[int], Sequence[int]]]) -> list[list[float]]:
        return score_sequences(policy, sequences, token_budget=tokens_per_batch, device=device)

    return TextScorer(score_ids, AutoTokenizer.from_pretrained(str(folder)), chat=chat)
