"""RolloutWorker: one engine in one process, weights stamped with the policy version that they claim to be."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rlkd.errors import RolloutError
from rlkd.rollout.vllm_engine import EngineSettings, Request, Sample, VllmEngine


class RolloutWorker:
    """Runs inside a Ray actor. Every answer carries the version of the weights that gave it."""

    def __init__(self, settings: EngineSettings) -> None:
        self.engine = VllmEngine(settings)
        self.version = -1

    def generate(
        self, requests: Sequence[Request], *, temperature: float, max_new_tokens: int, stop_ids: Sequence[int]
    ) -> tuple[int, list[list[Sample]]]:
        """(policy_version, samples per request)."""
        samples = self.engine.generate(
            requests, temperature=temperature, max_new_tokens=max_new_tokens, stop_ids=stop_ids
        )
        return self.version, samples

    def score(self, sequences: Sequence[tuple[Sequence[int], Sequence[int]]]) -> list[list[float]]:
        """Log-probabilities (nats, temperature 1) of completions."""
        return self.engine.score(sequences)

    def load_weights(
        self,
        named: Sequence[tuple[str, Any]],
        *,
        version: int,
        checksum: int,
        probe: tuple[Sequence[int], Sequence[int]] | None,
    ) -> list[float]:
        """Take new weights in place. Returns: the probe's log-probs under them, for the caller to compare.

        Raises: RolloutError when the bytes that arrived are not the bytes that were sent.
        """
        from rlkd.learner.weights import checksum as measure

        arrived = measure(named)
        if arrived != checksum:
            raise RolloutError(
                f"weights of version {version} arrived with checksum {arrived:08x}, sent as {checksum:08x}"
            )
        self.engine.load_weights(named)
        self.version = version
        return self.engine.score([probe])[0] if probe is not None else []

    def sleep(self) -> None:
        self.engine.sleep()

    def wake(self) -> None:
        self.engine.wake()
