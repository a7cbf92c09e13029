"""Held-out accuracy: avg@k, unbiased pass@k, maj@k, intervals, truncation, length buckets."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from math import comb
from typing import Any, NamedTuple

from reward.verdict import Verdict
from rlkd.records import RolloutGroup

_BUCKETS = 4


class ProblemScore(NamedTuple):
    """Means over one problem's judged samples."""

    score: float
    tokens: float


def by_problem(groups: Sequence[RolloutGroup], verdicts: Sequence[Verdict]) -> dict[str, ProblemScore]:
    """Score and completion length of each held-out problem; one whose every sample abstained is left out."""
    found: dict[str, ProblemScore] = {}
    left = iter(verdicts)
    for group in groups:
        pairs = [(next(left), rollout) for rollout in group.rollouts]
        judged = [(float(v.score), len(r.completion_ids)) for v, r in pairs if v.score is not None]
        if judged:
            scores, tokens = zip(*judged, strict=True)
            found[group.prompt.example.id] = ProblemScore(sum(scores) / len(judged), sum(tokens) / len(judged))
    return found


def wilson(successes: float, n: int, z: float = 1.959963984540054) -> tuple[float, float]:
    """95 % Wilson score interval of a proportion; (0, 1) without data."""
    from scipy.stats import binomtest

    if n == 0:
        return 0.0, 1.0
    if float(successes).is_integer():
        interval = binomtest(int(successes), n).proportion_ci(method="wilson")
        return float(interval.low), float(interval.high)
    share = successes / n
    centre = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * (share * (1 - share) / n + z * z / (4 * n * n)) ** 0.5
    return centre - half, centre + half


def pass_at_k(n: int, correct: int, k: int) -> float:
    """Unbiased estimate of P(at least one of k samples is right) from n samples (2107.03374, section 2.1)."""
    return 1.0 if n - correct < k else 1.0 - comb(n - correct, k) / comb(n, k)


def summarise(groups: Sequence[RolloutGroup], verdicts: Sequence[Verdict]) -> dict[str, Any]:
    """Figures of one evaluation. Abstained verdicts are left out of every share and counted.

    Returns: ``pass@1`` (mean over problems of their mean score), ``ci95``, ``n`` problems, and for k > 1 samples
        ``pass@k`` and ``maj@k``; ``truncated``, ``abstained``, ``mean_tokens`` and accuracy by ``length_buckets``.
    """
    per_problem, majority, at_k, lengths = [], [], [], []
    index = abstained = truncated = 0
    for group in groups:
        found = verdicts[index : index + len(group.rollouts)]
        index += len(group.rollouts)
        judged = [verdict for verdict in found if verdict.score is not None]
        abstained += len(found) - len(judged)
        truncated += sum(rollout.truncated for rollout in group.rollouts)
        lengths += [
            (len(rollout.completion_ids), float(verdict.score))
            for rollout, verdict in zip(group.rollouts, found, strict=True)
            if verdict.score is not None
        ]
        if not judged:
            continue
        per_problem.append(sum(float(v.score or 0.0) for v in judged) / len(judged))
        right = sum((v.score or 0.0) >= 1.0 for v in judged)
        at_k.append(pass_at_k(len(judged), right, len(judged)))
        majority.append(_majority(judged))
    total, n = len(lengths), len(per_problem)
    mean = sum(per_problem) / n if n else 0.0
    samples = max((len(group.rollouts) for group in groups), default=1)
    summary: dict[str, Any] = {
        "pass@1": mean,
        "n": n,
        "ci95": list(_interval(per_problem, samples)),
        "samples": samples,
        "truncated": truncated / max(1, sum(len(group.rollouts) for group in groups)),
        "abstained": abstained,
        "mean_tokens": sum(length for length, _ in lengths) / max(1, total),
        "length_buckets": _buckets(lengths),
    }
    if samples > 1:
        summary[f"pass@{samples}"] = sum(at_k) / max(1, n)
        summary[f"maj@{samples}"] = sum(majority) / max(1, n)
    return summary


def _majority(judged: Sequence[Verdict]) -> float:
    """Score of the most frequent parsed answer; ties go to the one seen first."""
    counts = Counter(verdict.parsed for verdict in judged if verdict.parsed is not None)
    if not counts:
        return 0.0
    answer = counts.most_common(1)[0][0]
    return next(float(v.score or 0.0) for v in judged if v.parsed == answer)


def _interval(per_problem: Sequence[float], samples: int) -> tuple[float, float]:
    """Wilson for one sample a problem; normal over problems' means otherwise (samples of one problem correlate)."""
    n = len(per_problem)
    if samples == 1 or n < 2:
        return wilson(sum(per_problem), n)
    mean = sum(per_problem) / n
    error = (sum((x - mean) ** 2 for x in per_problem) / (n - 1) / n) ** 0.5
    return max(0.0, mean - 1.96 * error), min(1.0, mean + 1.96 * error)


def _buckets(lengths: Sequence[tuple[int, float]]) -> list[dict[str, float]]:
    """Accuracy in quarters of the completions by length."""
    ordered = sorted(lengths)
    size = -(-len(ordered) // _BUCKETS) if ordered else 1
    parts = [ordered[start : start + size] for start in range(0, len(ordered), size)]
    return [
        {"from": part[0][0], "to": part[-1][0], "n": len(part), "accuracy": sum(s for _, s in part) / len(part)}
        for part in parts
    ]
