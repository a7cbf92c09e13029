"""The learner ranks of a stage, seen from the driver: every call is one collective over all of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rlkd.checkpoint import Checkpoint
from rlkd.cluster import Pending, Worker, gather
from rlkd.learner.learner import Update
from rlkd.metrics import merge
from rlkd.trainer.context import Run

LEARNER_WORKER = "rlkd.learner.worker:LearnerWorker"


@dataclass
class Learners:
    """One worker a rank."""

    run: Run
    workers: list[Worker] = field(default_factory=list)

    @property
    def ranks(self) -> int:
        return len(self.workers)

    def start(
        self, stage: str, source: Path, *, total_updates: int, offline: Mapping[str, Any] | None = None
    ) -> list[Pending]:
        """Start the ranks on the weights of ``source``; wait with ``gather``.

        Args:
            offline: the offline stage to learn for; default: the recipe's RL objective.
        """
        run = self.run
        self.workers = run.spawn_learners(stage)
        address, recipe = run.cluster.address(self.workers[0]), run.recipe.model_dump(mode="json")
        options = {"world_size": self.ranks, "address": address, "total_updates": total_updates, "offline": offline}
        return [
            run.cluster.build(worker, LEARNER_WORKER, recipe, str(source), rank=rank, **options)
            for rank, worker in enumerate(self.workers)
        ]

    def submit(self, method: str, *given: Any, **options: Any) -> list[Pending]:
        """The same call on every rank."""
        return [worker.submit(method, *given, **options) for worker in self.workers]

    def call(self, method: str, *given: Any, **options: Any) -> Any:
        """The same call on every rank (ZeRO-3 needs all of them); the answers are equal: that of rank 0."""
        return gather(self.submit(method, *given, **options), self.run.recipe.cluster.step_deadline_s)[0]

    def train(
        self, shares: Sequence[Sequence[Update]], *, step: int, keep: int = 0
    ) -> tuple[dict[str, float], dict[int, list[float]]]:
        """Each rank's updates. Returns: figures over all ranks, and kept log-probs by row index."""
        calls = [
            worker.submit("train_step", list(share), step=step, keep=keep)
            for worker, share in zip(self.workers, shares, strict=True)
        ]
        answers = gather(calls, self.run.recipe.cluster.step_deadline_s)
        kept = {index: values for _, part in answers for index, values in part.items()}
        return merge(counts for counts, _ in answers), kept

    def save(self, folder: Path) -> None:
        """Every rank's training state, into a checkpoint's folder."""
        self.call("save", str(folder / "learner"))

    def load(self, latest: Checkpoint) -> None:
        """Continue from ``save``."""
        self.call("load", str(latest.folder / "learner"), updates=int(latest.manifest["updates"]))

    def write_policy(self, output: Path) -> None:
        """The weights and the run's tokenizer as a model folder, in place at once."""
        output.parent.mkdir(parents=True, exist_ok=True)
        half = output.with_name(f".{output.name}.tmp")
        self.call("save_policy", str(half))
        self.run.tokenizer.save_pretrained(half)
        half.rename(output)

    def stop(self) -> None:
        """End every rank."""
        for worker in self.workers:
            self.run.cluster.stop(worker)
