"""Perplexity of traces under a strong model, and the density of token probabilities at a sampling temperature."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import ClassVar

from pydantic import Field, SkipValidation

from rlkd.data.curate.score import TokenScorer
from rlkd.data.curate.step import MODEL_ROWS, STEPS, Decision, Removal, Step, keep_traces, traces_of
from rlkd.data.rows import Row

RenderPrompt = Callable[[Row], str]


def question_prompt(row: Row) -> str:
    """The prompt when no template is given: the question and a line break."""
    return f"{row['question']}\n"


@STEPS.register("perplexity_filter")
class PerplexityFilter(Step):
    """Drop traces whose perplexity under the scorer is above ``max_perplexity``; the value is kept with the trace.

    Source: "Not All Correct Answers Are Equal" (2505.14464): perplexity of a strong 32B model, a threshold per
    teacher, whose values are not given. ``max_by_model`` sets one for each trace's ``model``.
    """

    kind: ClassVar[str] = "perplexity_filter"
    rows_at_once: ClassVar[int | None] = MODEL_ROWS
    max_perplexity: float = Field(gt=1.0)
    max_by_model: dict[str, float] = Field(default_factory=dict)
    scorer: SkipValidation[TokenScorer] = Field(exclude=True)
    prompt: SkipValidation[RenderPrompt] = Field(default=question_prompt, exclude=True)

    def decide(self, rows: Sequence[Row]) -> list[Decision]:
        scored = score_traces(rows, self.scorer, self.prompt)
        return [self._decide(row, values) for row, values in zip(rows, scored, strict=True)]

    def _decide(self, row: Row, mean_logprobs: Sequence[float]) -> Decision:
        traces = [{**t, "perplexity": math.exp(-mean)} for t, mean in zip(traces_of(row), mean_logprobs, strict=True)]
        return keep_traces({**row, "traces": traces}, {at: self._judge(trace) for at, trace in enumerate(traces)})

    def _judge(self, trace: Row) -> Removal | None:
        limit = self.max_by_model.get(str(trace.get("model")), self.max_perplexity)
        if math.isnan(trace["perplexity"]):
            return Removal("empty trace", {})
        if trace["perplexity"] > limit:
            return Removal("perplexity too high", {"perplexity": trace["perplexity"], "limit": limit})
        return None


def score_traces(rows: Sequence[Row], scorer: TokenScorer, prompt: RenderPrompt) -> list[list[float]]:
    """Mean log-probability (nats) of every trace of every row."""
    pairs = [(prompt(row), trace["text"]) for row in rows for trace in traces_of(row)]
    scores = iter(scorer(pairs))
    return [[next(scores).mean_logprob for _ in row["traces"]] for row in rows]


def probability_density(mean_logprobs: Sequence[float], bins: int = 20) -> list[tuple[float, float]]:
    """(bin centre, density) of per-response geometric-mean token probabilities; the area is 1.

    Source: DASD (2601.09088): plotted at each sampling temperature to choose the pair of temperatures.
    """
    if not mean_logprobs:
        return []
    counts = [0] * bins
    for mean in mean_logprobs:
        counts[min(bins - 1, int(math.exp(mean) * bins))] += 1
    return [((at + 0.5) / bins, count * bins / len(mean_logprobs)) for at, count in enumerate(counts)]
