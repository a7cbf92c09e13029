"""RolloutWorker: one engine in one process, weights stamped with the policy version that they claim to be."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rlkd.errors import RolloutError
from rlkd.learner.weights import Sent, checksum
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
        exported: tuple[Sequence[tuple[str, Any]], int] | Sent | str,
        *,
        version: int,
        probe: tuple[Sequence[int], Sequence[int]] | None,
    ) -> list[float]:
        """Take new weights in place.

        Args:
            exported: (named tensors, checksum) from the learner, what it has already sent, or a model folder.
            version: the policy version that they are.
            probe: (prompt_ids, completion_ids) to score under them.

        Returns: the probe's log-probs, for the caller to compare with the learner's.
        Raises: RolloutError when the bytes that arrived are not the bytes that were sent.
        """
        if isinstance(exported, Sent):
            _check(self.engine.received_checksums(), exported.checksum, version)
        elif isinstance(exported, str):
            self.engine.load_weights(_read_folder(exported))
        else:
            named, sent = exported
            _check([checksum(named)], sent, version)
            self.engine.load_weights(named)
        self.version = version
        return self.engine.score([probe])[0] if probe is not None else []

    def weight_sync(self, call: str, request: dict[str, Any] | None = None) -> None:
        """One call of vLLM's weight-transfer protocol, from rank 0 of the learners; ``load_weights`` ends an update."""
        if call == "start_weight_update":
            self.version = -1  # neither the old weights nor, yet, the new ones
        self.engine.weight_sync(call, request)

    def sleep(self) -> None:
        self.engine.sleep()

    def wake(self) -> None:
        self.engine.wake()


def _check(arrived: Sequence[int], sent: int, version: int) -> None:
    for value in arrived:
        if value != sent:
            raise RolloutError(f"weights of version {version} arrived with checksum {value:08x}, sent as {sent:08x}")


def _read_folder(folder: str) -> list[tuple[str, Any]]:
    """Weights of a folder in transformers' format."""
    from safetensors import safe_open

    named = []
    for path in sorted(Path(folder).glob("*.safetensors")):
        with safe_open(path, framework="pt") as stream:
            named += [(name, stream.get_tensor(name)) for name in stream.keys()]  # noqa: SIM118 - not a mapping
    if not named:
        raise RolloutError(f"{folder} holds no safetensors weights")
    return named
