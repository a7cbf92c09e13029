"""Learning rates as pure functions of the update's index: resuming needs no scheduler state."""

from __future__ import annotations

import math

from rlkd.recipe.schema import OptimSpec


def learning_rate(optim: OptimSpec, update: int, total: int) -> float:
    """The learning rate of update ``update`` (from 0) of ``total``.

    Linear warm-up over ``warmup_steps`` (the first update already moves), then constant, linear or cosine decay that
    would be at ``min_lr_ratio * lr`` after the last update: every update moves.
    """
    if update < optim.warmup_steps:
        return optim.lr * (update + 1) / (optim.warmup_steps + 1)
    if optim.schedule == "constant":
        return optim.lr
    span = max(1, total - optim.warmup_steps)
    progress = min(1.0, (update - optim.warmup_steps) / span)
    left = 1 - progress if optim.schedule == "linear" else 0.5 * (1 + math.cos(math.pi * progress))
    return optim.lr * (optim.min_lr_ratio + (1 - optim.min_lr_ratio) * left)
