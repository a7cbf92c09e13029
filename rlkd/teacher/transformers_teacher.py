"""A teacher on the learner's own packed forward pass. (A vLLM teacher is a RolloutWorker with other weights.)"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from rlkd.learner.packing import score_sequences
from rlkd.learner.policy import PackedPolicy, load_causal_lm
from rlkd.rollout.vllm_engine import EngineSettings


class TransformersTeacher:
    """Scores at any temperature, and without an engine gap between teacher and learner."""

    def __init__(self, settings: EngineSettings, *, temperature: float, tokens_per_batch: int) -> None:
        self.device = "cuda" if settings.on_gpu else "cpu"
        self.tokens_per_batch = tokens_per_batch
        model = load_causal_lm(settings.folder, dtype=getattr(torch, settings.dtype)).to(self.device)
        self.policy = PackedPolicy(model.eval().requires_grad_(False), temperature=temperature)

    def score(self, sequences: Sequence[tuple[Sequence[int], Sequence[int]]]) -> list[list[float]]:
        """Log-probabilities (nats, at the sampling temperature) of each (prompt_ids, completion_ids) pair."""
        return score_sequences(self.policy, sequences, token_budget=self.tokens_per_batch, device=self.device)
