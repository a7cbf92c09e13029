"""What every stage of a run shares."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from reward.pool import VerifierPool
from reward.verdict import Verdict
from rlkd.checkpoint import Checkpoint
from rlkd.cluster import Cluster, Worker, gather, gpu_share, teachers_beside, weights_transport
from rlkd.data.prompt import PromptBuilder
from rlkd.evaluate import ProblemScore, by_problem, summarise
from rlkd.metrics import MetricsLog
from rlkd.recipe import Recipe
from rlkd.recipe.privileged_checks import longest_sampled_prompt, teacher_prompt_budget
from rlkd.records import Prompt, Rollout, RolloutGroup
from rlkd.rollout.vllm_engine import EngineSettings
from rlkd.trainer.console import Console
from rlkd.trainer.fleet import Fleet, Published, Sampling, Turn, sample
from rlkd.trainer.folder import RunFolder
from rlkd.trainer.sampling import derive_seed

ROLLOUT_WORKER = "rlkd.rollout.worker:RolloutWorker"
DTYPES = {"fp32": "float32", "bf16": "bfloat16"}


@dataclass
class Run:
    """The open run: recipe, folder, cluster, data, verifier, engines."""

    recipe: Recipe  # with its placement settled
    folder: RunFolder
    cluster: Cluster
    console: Console
    tokenizer: Any
    builder: PromptBuilder
    train_prompts: list[Prompt]
    eval_prompts: list[Prompt]
    pool: VerifierPool
    rollouts: Fleet | None = None
    tokens: dict[str, int] = field(default_factory=lambda: {"generated": 0, "trained": 0})
    abstained: int = 0
    metrics_position: int = 0
    gap: dict[str, float] = field(default_factory=lambda: {"mean": 0.0, "max": 0.0})
    bundles: list[tuple[Any, int]] | None = None  # colocated on GPUs: where learner i, engine i and teacher i live
    problem_scores: dict[str, ProblemScore] = field(default_factory=dict)  # of the latest evaluation

    def __post_init__(self) -> None:
        if self.recipe.cluster.placement == "colocated" and self.bundles is None:
            self.bundles = self.cluster.pairs(max(self.ranks, self.recipe.cluster.rollout_workers))

    @property
    def ranks(self) -> int:
        return self.recipe.cluster.learner_workers or 1

    @property
    def beside(self) -> int:
        """Teachers on the GPU of a learner and an engine."""
        return teachers_beside(self.recipe, self.cluster.hardware)

    @property
    def gpu_part(self) -> float:
        """What one of those who share a GPU asks Ray for."""
        return math.floor(1e4 / (2 + self.beside)) / 1e4 if self.recipe.cluster.placement == "colocated" else 1.0

    @property
    def dtype(self) -> str:
        chosen = self.recipe.engine.dtype
        return DTYPES[self.recipe.learner.precision or "fp32"] if chosen == "auto" else chosen

    def engine_settings(self, folder: Path, *, scores: bool = False, top_k: int = 0) -> EngineSettings:
        """An engine for the weights of ``folder`` on this cluster."""
        spec, rollout = self.recipe.engine, self.recipe.rollout
        longest = max(rollout.max_new_tokens, self.recipe.eval.max_new_tokens or 0)
        prompt = teacher_prompt_budget(self.recipe) if scores else longest_sampled_prompt(self.recipe)
        return EngineSettings(
            folder=str(folder),
            dtype=self.dtype,
            max_model_len=prompt + longest + 1,  # a scored sequence generates one token more
            max_concurrent=spec.max_concurrent,
            on_gpu=self.cluster.hardware.on_gpu,
            tensor_parallel=spec.tensor_parallel,
            gpu_memory_utilization=gpu_share(self.recipe, teacher=scores, beside=self.beside),
            kv_cache_gib=spec.kv_cache_gib,
            enforce_eager=spec.enforce_eager,
            colocated=self.recipe.cluster.placement == "colocated" and (not scores or self.beside > 0),
            scores=scores,
            top_k=top_k,
            transport="object_store" if scores else weights_transport(self.recipe, self.cluster.hardware),
        )

    def start_rollouts(self, folder: Path, *, kind: str = "RolloutWorker") -> None:
        """Start the rollout engines once; later stages only swap their weights."""
        if self.rollouts is not None:
            return
        self.rollouts = Fleet(
            cluster=self.cluster,
            kind=kind,
            settings=self.engine_settings(folder),
            target=ROLLOUT_WORKER,
            deadline_s=self.recipe.cluster.step_deadline_s,
            gpus=self.gpu_part * self.recipe.engine.tensor_parallel,
            bundles=self.bundles,
        )
        gather(self.rollouts.start(self.recipe.cluster.rollout_workers), self.recipe.cluster.start_deadline_s)

    def verify(self, groups: Sequence[RolloutGroup], *, counted: bool = True) -> list[Verdict]:
        """Judge every rollout; a failed check abstains. ``counted``: whether they are answers of the policy."""
        items = [
            (rollout.text, _told(group, rollout, self.pool.reads)) for group in groups for rollout in group.rollouts
        ]
        verdicts = self.pool.verify_batch(items, counted=counted)
        if not counted:
            return verdicts
        self.abstained += sum(verdict.abstained for verdict in verdicts)
        return verdicts

    def evaluate(self, fleet: Fleet, label: str, *, weights: Path | None = None) -> dict[str, Any] | None:
        """Held-out accuracy of what the fleet serves, or of a model folder loaded into it first."""
        if not self.eval_prompts:
            return None
        self.console.status(f"evaluating {label} on {len(self.eval_prompts)} held-out problems")
        if weights is not None:
            gather(fleet.publish(Published(str(weights), version=0), None), fleet.deadline_s)
        groups, verdicts = self.measure(fleet, self.eval_prompts)
        self.problem_scores = by_problem(groups, verdicts)
        summary = summarise(groups, verdicts, self.pool.verify_batch)
        self.console.evaluation(label, summary)
        return summary

    def measure(self, fleet: Fleet, prompts: Sequence[Prompt]) -> tuple[list[RolloutGroup], list[Verdict]]:
        """Sample as the recipe's evaluation does, and judge."""
        spec = self.recipe.eval
        length = spec.max_new_tokens or self.recipe.rollout.max_new_tokens
        seeds = [derive_seed(self.recipe.seed, "eval", prompt.example.id) for prompt in prompts]
        sampling = Sampling(spec.samples, spec.temperature, length, spec.top_p)
        groups = sample(fleet, prompts, seeds, sampling, self.tokenizer).groups()
        return groups, self.verify(groups)

    def spawn_learners(self, stage: str, *, kind: str = "LearnerWorker") -> list[Worker]:
        """Empty learner processes, one a rank."""
        places: list[Any] = [*self.bundles] if self.bundles else [None] * self.ranks
        return [
            self.cluster.spawn(f"{kind}-{stage}-{rank}", gpus=self.gpu_part, bundle=places[rank])
            for rank in range(self.ranks)
        ]

    def turn(self, turn: Turn) -> None:
        """The rollout engines give shared GPUs to whoever trains or serves beside them, or take them back."""
        if self.rollouts is not None:
            self.rollouts.turn(turn)

    def open_metrics(self, latest: Checkpoint | None) -> MetricsLog:
        """The run's metrics, cut back to where the checkpoint stood."""
        position = int(latest.manifest["metrics_position"]) if latest else self.metrics_position
        return MetricsLog(self.folder.path, name=self.recipe.name, trackers=self.recipe.log.trackers, position=position)


def _told(group: RolloutGroup, rollout: Rollout, reads: frozenset[str]) -> dict[str, Any]:
    """What a verifier may read beside the text: the row, and of the rollout what this verifier uses (length, leak)."""
    prompt, count = group.prompt, len(rollout.completion_ids)
    fields: dict[str, Callable[[], Any]] = {
        "prompt": lambda: prompt.text,
        "privileged": lambda: prompt.privileged.privileged if prompt.privileged else None,
        "completion_ids": lambda: list(rollout.completion_ids),
        "completion_tokens": lambda: count,
        "turn_tokens": lambda: [count],
    }
    return prompt.example.for_verifier() | {name: fields[name]() for name in sorted(reads)}
