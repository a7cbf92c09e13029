"""How sure a model is of traces, by who wrote them and at which temperature: which sampling temperatures to pair.

Source: DASD (2601.09088) plots the density of per-response geometric-mean token probabilities at each temperature; DED
(2508.09883) compares corpora by token entropy, whose estimate here is the mean negative log-probability. It is unbiased
where the scorer wrote the traces itself, at temperature 1.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from rlkd.analysis.report import Cell, Table
from rlkd.data.curate.perplexity import probability_density
from rlkd.data.curate.score import TokenScores
from rlkd.data.rows import Row
from rlkd.errors import DataCardError

Groups = dict[str, list[TokenScores]]


def group_scores(traces: Iterable[Row], scores: Sequence[TokenScores]) -> Groups:
    """Scores by the trace's ``model`` and ``temperature``; traces without a token are left out."""
    found: Groups = defaultdict(list)
    for trace, each in zip(traces, scores, strict=True):
        if each.logprobs:
            temperature = trace.get("temperature")
            name = str(trace.get("model", "unnamed"))
            found[name if temperature is None else f"{name} at {temperature}"].append(each)
    if not found:
        raise DataCardError("no trace with a token: nothing to plot")
    return dict(sorted(found.items()))


def density_table(groups: Groups) -> Table:
    """Traces, tokens, nats a token, and quantiles of the traces' geometric-mean token probabilities."""
    rows: list[tuple[Cell, ...]] = []
    for name, scores in groups.items():
        tokens = sum(len(each.logprobs) for each in scores)
        nats = -math.fsum(logp for each in scores for logp in each.logprobs) / tokens
        means = np.exp([each.mean_logprob for each in scores])
        low, middle, high = (float(np.quantile(means, share)) for share in (0.1, 0.5, 0.9))
        rows.append((name, len(scores), tokens, nats, low, middle, high))
    columns = ("traces of", "traces", "tokens", "nats a token", "10 %", "median token probability", "90 %")
    return Table("How sure the model is of the traces", columns, tuple(rows))


def draw_density(groups: Groups) -> Callable[[Any], None]:
    """One density a group."""

    def draw(axes: Any) -> None:
        for name, scores in groups.items():
            centres, heights = zip(*probability_density([each.mean_logprob for each in scores]), strict=True)
            axes.step(centres, heights, where="mid", label=name)
        axes.legend()
        axes.set(xlabel="geometric-mean token probability of a trace", ylabel="density", xlim=(0, 1))

    return draw
