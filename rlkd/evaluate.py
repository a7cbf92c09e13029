"""Held-out accuracy: avg@k, unbiased pass@k, maj@k, intervals, truncation, length buckets."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from math import comb
from typing import Any, NamedTuple

from reward.verdict import Verdict
from rlkd.records import Example, RolloutGroup

Judge = Callable[[Sequence[tuple[str, Mapping[str, Any]]]], Sequence[Verdict]]
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
    """95 % Wilson score interval of a proportion, of a fractional count as well; (0, 1) without data."""
    if n == 0:
        return 0.0, 1.0
    share = successes / n
    centre = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * (share * (1 - share) / n + z * z / (4 * n * n)) ** 0.5
    return max(0.0, centre - half), min(1.0, centre + half)


def pass_at_k(n: int, correct: int, k: int) -> float:
    """Unbiased estimate of P(at least one of k samples is right) from n samples (2107.03374, section 2.1)."""
    return 1.0 if n - correct < k else 1.0 - comb(n - correct, k) / comb(n, k)


def summarise(groups: Sequence[RolloutGroup], verdicts: Sequence[Verdict], judge: Judge) -> dict[str, Any]:
    """Figures of one evaluation. Abstained verdicts are left out of every share and counted.

    Args:
        judge: verdicts of (completion, example) pairs; asked whether two wrong answers are the same one.

    Returns: ``pass@1`` (mean over problems of their mean score), ``ci95``, ``n`` problems, and for N > 1 samples
        ``pass@k`` (k = 2, 4, ... and N; at least one score of 1) and ``maj@N``; ``truncated``, ``abstained``,
        ``mean_tokens`` and accuracy by ``length_buckets``. A problem with fewer than k judged samples is not in pass@k;
        a verifier that accepts without saying which answer it read leaves nothing to vote on, and no ``maj@N``.
    """
    per_problem, majority, lengths = [], [], []
    judged_right: list[tuple[int, int]] = []  # of each problem: judged samples, right ones
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
        judged_right.append((len(judged), sum(_is_right(v) for v in judged)))
        majority.append(_majority(group.prompt.example, judged, judge) if len(judged) > 1 else per_problem[-1])
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
    for k in sorted({samples, *(2**power for power in range(1, samples.bit_length()))} - {1}):
        if enough := [pass_at_k(count, right, k) for count, right in judged_right if count >= k]:
            summary[f"pass@{k}"] = sum(enough) / len(enough)
    unnamed = any((verdict.score or 0.0) > 0.0 and verdict.parsed is None for verdict in verdicts)
    if samples > 1 and not unnamed:
        summary[f"maj@{samples}"] = sum(majority) / max(1, n)
    return summary


def _is_right(verdict: Verdict) -> bool:
    return (verdict.score or 0.0) >= 1.0


def _majority(example: Example, judged: Sequence[Verdict], judge: Judge) -> float:
    """Score of the most frequent answer, however it is written; ties go to the one seen first.

    Right answers are one answer. Wrong ones may be one answer in several spellings (1/3 and 0.333...): only where that
    could decide the vote, the verifier is asked, each spelling taken as gold for the others.
    """
    votes = Counter(_is_right(verdict) or verdict.parsed for verdict in judged if verdict.parsed is not None)
    if not votes:
        return 0.0
    right, wrong = votes[True], [text for text in votes if text is not True]
    if right and max((votes[text] for text in wrong), default=0) <= right <= sum(votes[text] for text in wrong):
        pairs = [(one, other) for at, other in enumerate(wrong) for one in wrong[at + 1 :]]
        gold = example.for_verifier()
        same = judge([(f"\\boxed{{{one}}}", {**gold, "answer": other}) for one, other in pairs])
        for (one, other), verdict in zip(pairs, same, strict=True):
            if _is_right(verdict) and one in votes and other in votes:
                votes[other] += votes.pop(one)
    answer = max(votes, key=lambda text: votes[text])  # the first of the largest, as ``votes`` keeps its order
    return next(float(v.score or 0.0) for v in judged if (_is_right(v) or v.parsed) == answer)


def _interval(per_problem: Sequence[float], samples: int) -> tuple[float, float]:
    """Wilson for one sample a problem; normal over problems' means otherwise (samples of one problem correlate).

    Problems that all have the same mean say nothing about their spread, as none solved by a small model: Wilson then.
    """
    n = len(per_problem)
    if samples == 1 or len(set(per_problem)) < 2:
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
