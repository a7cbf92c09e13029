"""TeacherWorker: scores the policy's tokens, on vLLM or on the learner's own packed forward pass."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rlkd.rollout.vllm_engine import EngineSettings, VllmEngine


class VllmTeacher:
    """Log-probs from the engine's prompt log-probs, at temperature 1."""

    def __init__(self, settings: EngineSettings) -> None:
        self.engine = VllmEngine(settings)

    def score(self, sequences: Sequence[tuple[Sequence[int], Sequence[int]]]) -> list[list[float]]:
        """Log-probabilities (nats) of each (prompt_ids, completion_ids) pair's completion."""
        return self.engine.score(sequences)


class TransformersTeacher:
    """The same packed forward pass as the learner's, so that no engine gap enters the distillation signal."""

    def __init__(self, settings: EngineSettings, *, temperature: float, tokens_per_batch: int) -> None:
        import torch

        from rlkd.learner.policy import PackedPolicy, load_causal_lm

        self.device = "cuda" if settings.on_gpu else "cpu"
        self.tokens_per_batch = tokens_per_batch
        model: Any = load_causal_lm(settings.folder, dtype=getattr(torch, settings.dtype))
        self.policy = PackedPolicy(model.to(self.device).eval().requires_grad_(False), temperature=temperature)

    def score(self, sequences: Sequence[tuple[Sequence[int], Sequence[int]]]) -> list[list[float]]:
        """Log-probabilities (nats, at the sampling temperature) of each completion."""
        from rlkd.learner.packing import score_sequences

        return score_sequences(self.policy, sequences, token_budget=self.tokens_per_batch, device=self.device)
