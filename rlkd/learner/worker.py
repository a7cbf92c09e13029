"""LearnerWorker: one DeepSpeed rank in one process."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from rlkd.learner.figures import Counts, Kept
from rlkd.learner.learner import Learner, Update
from rlkd.learner.packing import score_sequences
from rlkd.learner.pairs import PairLearner
from rlkd.learner.policy import DTYPES, PackedPolicy, load_causal_lm, placed
from rlkd.recipe import Recipe
from rlkd.recipe.schema import OfflineStage
from rlkd.records import TrainRow


def join_process_group(rank: int, world_size: int, address: tuple[str, int]) -> None:
    """Set the rank variables that torch, accelerate and DeepSpeed read, and meet the other ranks."""
    host, port = address
    os.environ.update(
        RANK=str(rank),
        WORLD_SIZE=str(world_size),
        LOCAL_RANK="0",  # Ray shows each worker only its own device
        LOCAL_SIZE=str(world_size),  # DeepSpeed's CPU accelerator reads it
        MASTER_ADDR=host,
        MASTER_PORT=str(port),
    )
    on_gpu = torch.cuda.is_available()
    torch.distributed.init_process_group("nccl" if on_gpu else "gloo", rank=rank, world_size=world_size)


class LearnerWorker:
    """Runs inside a Ray actor."""

    def __init__(
        self,
        recipe: Mapping[str, Any],
        folder: str,
        *,
        rank: int,
        world_size: int,
        address: tuple[str, int],
        total_updates: int,
        offline: Mapping[str, Any] | None = None,
    ) -> None:
        """``offline``: the offline stage to learn for; default: the recipe's RL objective."""
        join_process_group(rank, world_size, address)
        torch.manual_seed(int(recipe["seed"]))
        torch.use_deterministic_algorithms(True, warn_only=True)
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]  # costs 8 % of a step
        options: dict[str, Any] = {"rank": rank, "world_size": world_size, "total_updates": total_updates}
        spec = Recipe.model_validate(recipe)
        if offline is None:
            self.learner: Learner = Learner(spec, Path(folder), **options)
        else:
            self.learner = PairLearner(spec, Path(folder), stage=OfflineStage.model_validate(offline), **options)

    def train_step(self, updates: Sequence[Update], *, step: int, keep: int = 0) -> tuple[Counts, Kept]:
        found = self.learner.train_step(updates, step=step, keep=keep)
        if self.learner.recipe.cluster.placement == "colocated" and torch.cuda.is_available():
            torch.cuda.empty_cache()  # what the step needed is the engine's to take when it wakes
        return found

    def gradients(self, update: Update, *, step: int) -> dict[str, Any]:
        return self.learner.gradients(update, step=step)

    def score(self, rows: Sequence[TrainRow]) -> list[list[float]]:
        return self.learner.score(rows)

    def score_other(self, rows: Sequence[TrainRow], *, exact: Any = None) -> list[list[float]]:
        return self.learner.score_other(rows, exact=exact)

    def hold_heads(self, folders: Mapping[str, str]) -> None:
        self.learner.hold_heads(folders)

    def score_with(self, folder: str, sequences: Sequence[tuple[Sequence[int], Sequence[int]]]) -> list[list[float]]:
        """Log-probs of another model through the learner's own forward pass (the contract's known weights).

        A teacher may be too large for the learner's device: then it comes there layer by layer.
        """
        recipe, device = self.learner.recipe, self.learner.engine.device
        model = placed(load_causal_lm(folder, dtype=DTYPES[recipe.learner.precision or "fp32"]), device)
        policy = PackedPolicy(model.eval(), temperature=recipe.rollout.temperature)
        budget = recipe.learner.tokens_per_micro_batch
        return score_sequences(policy, sequences, token_budget=budget, device=device)

    def export_weights(self) -> Any:
        return self.learner.export_weights()

    def join_engines(self, route: Any) -> None:
        self.learner.join_engines(route)

    def send_weights(self) -> Any:
        return self.learner.send_weights()

    def save(self, folder: str) -> None:
        self.learner.save(Path(folder))

    def load(self, folder: str, *, updates: int) -> None:
        self.learner.load(Path(folder), updates=updates)

    def save_policy(self, folder: str) -> None:
        self.learner.save_policy(Path(folder))
