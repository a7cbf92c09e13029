"""Figures that one rank collects in a step: (sum, count) pairs by name, and log-probs kept for the rollout log."""

from __future__ import annotations

import resource
from dataclasses import dataclass, field

import torch

from rlkd.learner.loss import Signals

Counts = dict[str, tuple[float, float]]  # name -> (sum, count)
Kept = dict[int, list[float]]  # rollout index -> policy_logprobs


@dataclass
class StepPass:
    """What one step collects on one rank."""

    step: int
    proximal: Kept
    keep: int
    updates: int = 1  # of the step: the loss it tells is their mean
    counts: Counts = field(default_factory=dict)
    kept: Kept = field(default_factory=dict)


def peak_memory_gib() -> float:
    """Largest resident (CPU) or allocated (GPU) memory of this process so far."""
    if torch.cuda.is_available():
        return float(torch.cuda.max_memory_allocated()) / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def add_figure(counts: Counts, name: str, total: float, count: float) -> None:
    before = counts.get(name, (0.0, 0.0))
    counts[name] = (before[0] + total, before[1] + count)


def add_gap(counts: Counts, signals: Signals) -> None:
    """Rollout engine against learner on the same tokens: mean and max of |difference|, and KL(rollout || policy)."""
    mask = signals.response_mask
    if not bool(mask.any()):
        return
    log_ratio = (signals.policy_logprobs.detach() - signals.rollout_logprobs)[mask].double()
    count = float(mask.sum())
    add_figure(counts, "rollout_policy_logprob_gap/mean", float(log_ratio.abs().sum()), count)
    add_figure(counts, "rollout_policy_logprob_gap/kl", float((log_ratio.exp() - 1 - log_ratio).sum()), count)
    peak = "rollout_policy_logprob_gap/max"
    counts[peak] = (max(counts.get(peak, (0.0, 1.0))[0], float(log_ratio.abs().max())), 1.0)
