"""RolloutWorker: one engine in one process, weights stamped with the policy version that they claim to be."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rlkd.errors import RolloutError
from rlkd.learner.weights import checksum
from rlkd.records import TopK
from rlkd.rollout.vllm_engine import EngineSettings, Request, Sample, VllmEngine


class RolloutWorker:
    """Runs inside a Ray actor. Every answer carries the version of the weights that gave it."""

    def __init__(self, settings: EngineSettings) -> None:
        self.engine = VllmEngine(settings)
        self.version = -1

    def generate(
        self,
        requests: Sequence[Request],
        *,
        temperature: float,
        max_new_tokens: int,
        stop_ids: Sequence[int],
        top_p: float = 1.0,
    ) -> tuple[int, list[list[Sample]]]:
        """(policy_version, samples per request)."""
        samples = self.engine.generate(
            requests, temperature=temperature, max_new_tokens=max_new_tokens, stop_ids=stop_ids, top_p=top_p
        )
        return self.version, samples

    def score(self, sequences: Sequence[tuple[Sequence[int], Sequence[int]]]) -> list[list[float]]:
        """Log-probabilities (nats, temperature 1) of completions."""
        return self.engine.score(sequences)

    def top_k(self, sequences: Sequence[tuple[Sequence[int], Sequence[int]]], *, k: int) -> list[TopK]:
        """The k most likely entries before each completion token, with their log-probs."""
        return self.engine.top_k(sequences, k=k)

    def load_weights(
        self,
        exported: tuple[Sequence[tuple[str, Any]], int] | str,
        *,
        version: int,
        probe: tuple[Sequence[int], Sequence[int]] | None,
    ) -> list[float]:
        """Take new weights in place.

        Args:
            exported: (named tensors, checksum) from the learner, or a model folder.
            version: the policy version that they are.
            probe: (prompt_ids, completion_ids) to score under them.

        Returns: the probe's log-probs, for the caller to compare with the learner's.
        Raises: RolloutError when the bytes that arrived are not the bytes that were sent.
        """
        named, sent = _read_folder(exported) if isinstance(exported, str) else exported
        arrived = checksum(named)
        if sent is not None and arrived != sent:
            raise RolloutError(f"weights of version {version} arrived with checksum {arrived:08x}, sent as {sent:08x}")
        self.engine.load_weights(named)
        self.version = version
        return self.engine.score([probe])[0] if probe is not None else []

    def sleep(self) -> None:
        self.engine.sleep()

    def wake(self) -> None:
        self.engine.wake()


def _read_folder(folder: str) -> tuple[list[tuple[str, Any]], None]:
    """Weights of a folder in transformers' format."""
    from safetensors import safe_open

    named = []
    for path in sorted(Path(folder).glob("*.safetensors")):
        with safe_open(path, framework="pt") as stream:
            named += [(name, stream.get_tensor(name)) for name in stream.keys()]  # noqa: SIM118 - not a mapping
    if not named:
        raise RolloutError(f"{folder} holds no safetensors weights")
    return named, None
