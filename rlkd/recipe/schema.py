"""What a recipe may say. Torch-free, strict, frozen; every default is visible in the resolved recipe."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from rlkd.recipe.base import FolderName, Fraction, NonNegative, Positive, Section
from rlkd.recipe.data import DataSources, DataSpec
from rlkd.recipe.models import AnyTeacher, ModelSpec
from rlkd.recipe.objectives import AdvantageSpec, GroupAdvantage, GrpoObjective, Objective
from rlkd.recipe.offline import CollapseSpec, PairObjective, PairSource, RediObjective
from rlkd.recipe.privileged import FeedbackSpec, PrivilegedSpec


class VerifierSpec(Section):
    """Who judges a completion: a registered name (``math``, ...) or ``module:function``."""

    kind: str = "math"
    options: dict[str, Any] = Field(default_factory=dict)
    workers: Positive = 1
    time_limit_s: Annotated[float, Field(gt=0)] = 5.0
    memory_limit_mb: Positive = 2048


class RolloutSpec(Section):
    """How the policy is sampled. A step uses ``prompts_per_step x group_size`` rollouts over all workers."""

    prompts_per_step: Positive = 16
    group_size: Positive = 8
    temperature: Annotated[float, Field(gt=0)] = 1.0
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    top_k: NonNegative = Field(default=0, description="0: off")
    max_prompt_tokens: Positive = 512
    max_new_tokens: Positive = 512
    truncated: Literal["keep", "mask"] = Field(
        default="keep", description="'mask' trains no token of a completion that hit max_new_tokens"
    )


class OptimSpec(Section):
    """AdamW and its schedule, in optimizer updates of the stage."""

    lr: Annotated[float, Field(gt=0)] = 1e-6
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    warmup_steps: NonNegative = 0
    min_lr_ratio: Fraction = 0.0
    betas: list[Fraction] = Field(default_factory=lambda: [0.9, 0.999], min_length=2, max_length=2)
    eps: Annotated[float, Field(gt=0)] = 1e-8
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    max_grad_norm: Annotated[float, Field(gt=0)] = 1.0


class LoraSpec(Section):
    """Low-rank adapters through peft; the frozen base stays usable as reference or teacher."""

    rank: Positive = 16
    alpha: Positive = 32
    dropout: Fraction = 0.0
    target_modules: list[str] | Literal["all-linear"] = "all-linear"


class LearnerSpec(Section):
    """DeepSpeed and memory. ``None`` takes the launcher's setting, else the default in the description."""

    precision: Literal["fp32", "bf16", "auto"] | None = Field(
        default=None,
        description="default: fp32 on CPU, bf16 on GPU. auto: bf16 where the device has instructions for it, also on a "
        "CPU; else fp32",
    )
    zero_stage: Literal[0, 1, 2, 3] | None = Field(default=None, description="default: 0")
    offload_optimizer: bool = False
    gradient_checkpointing: bool = False
    tokens_per_micro_batch: Positive = 16384
    updates_per_step: Positive = Field(default=1, description="optimizer updates on one step's rollouts")
    lora: LoraSpec | None = Field(default=None, description="of stages 'rl' and 'offline'; SFT trains all weights")


class EngineSpec(Section):
    """vLLM."""

    dtype: Literal["float32", "bfloat16", "auto"] = Field(default="auto", description="auto: the learner's precision")
    tensor_parallel: Positive = 1
    max_concurrent: Positive = 256
    gpu_memory_utilization: Annotated[float, Field(gt=0, lt=1)] | None = Field(
        default=None,
        description="share of a GPU that an engine takes; default: 0.85, or 0.4 beside a learner (colocated)",
    )
    kv_cache_gib: Positive = Field(default=1, description="CPU engines only")
    enforce_eager: bool = False


class ClusterSpec(Section):
    """How many workers of each kind, where, and in which order."""

    rollout_workers: Positive = 1
    teacher_workers: Positive = 1
    learner_workers: Positive | None = Field(default=None, description="default: the launcher's processes, else 1")
    placement: Literal["auto", "separate", "colocated"] = Field(
        default="auto",
        description="on GPUs. separate: one for each worker; colocated: an engine and a learner take turns on one, and "
        "teachers too where none is left for them; auto: separate where there are enough",
    )
    weights: Literal["auto", "object_store", "nccl", "ipc", "gloo"] = Field(
        default="auto",
        description="how new weights reach the rollout engines. auto: object_store on a CPU, nccl between GPUs, "
        "ipc (CUDA) on shared ones; gloo is nccl's way without a GPU",
    )
    schedule: Literal["sync", "async"] = "sync"
    max_staleness: NonNegative = Field(
        default=0, description="async: updates that may lie between sampling and training"
    )
    start_deadline_s: Annotated[float, Field(gt=0)] = 600.0
    step_deadline_s: Annotated[float, Field(gt=0)] = 3600.0


# ---------------------------------------------------------------- stages and the rest


class SftStage(Section):
    """Supervised fine-tuning on the solutions of ``data`` (TRL's SFTTrainer); its output feeds the next stage."""

    kind: Literal["sft"] = "sft"
    name: FolderName = "sft"
    target: Literal["policy", "teacher"] = "policy"
    data: DataSources | None = Field(default=None, description="default: data.train")
    steps: Positive
    batch_size: Positive = Field(default=64, description="sequences per update over all ranks")
    max_length: Positive = 1024
    packing: bool = False
    contexts: list[Literal["bare", "privileged", "second_turn", "critique"]] = Field(
        default=["bare"],
        min_length=1,
        description="rows of each example: its solution after the student's prompt, the teacher's, or a second turn's "
        "(after feedback on a wrong attempt), or that feedback after the critic's prompt; another example's solution "
        "stands for the attempt",
    )
    optim: OptimSpec = OptimSpec(lr=1e-3, schedule="cosine", warmup_steps=20)


class RlStage(Section):
    """Sample, judge, score with the teacher, learn: uses the recipe's objective, advantage, rollout and optim."""

    kind: Literal["rl"] = "rl"
    name: FolderName = "rl"
    steps: Positive


class OfflineStage(Section):
    """Learn from right and wrong traces of the same problems: REDI and its baselines. The policy is trained."""

    kind: Literal["offline"] = "offline"
    name: FolderName = "offline"
    pairs: PairSource
    objective: PairObjective = RediObjective()
    steps: Positive | None = Field(default=None, description="updates; write this or epochs")
    epochs: Annotated[float, Field(gt=0)] | None = Field(default=None, description="passes over the pairs")
    batch_size: Positive = Field(default=32, description="pairs per update over all ranks")
    max_prompt_tokens: Positive = Field(default=512, description="pairs with a longer prompt are left out")
    max_response_tokens: Positive = Field(default=512, description="pairs with a longer trace are left out")
    optim: OptimSpec = OptimSpec()
    collapse: CollapseSpec = CollapseSpec()

    @model_validator(mode="after")
    def _one_length(self) -> OfflineStage:
        if (self.steps is None) == (self.epochs is None):
            raise ValueError(f"stage '{self.name}': write either steps or epochs")
        return self


Stage = Annotated[SftStage | RlStage | OfflineStage, Field(discriminator="kind")]


class EarlyStopSpec(Section):
    """End an RL stage whose held-out accuracy no longer rises, and keep the policy of its best evaluation."""

    patience: Positive = Field(default=3, description="evaluations in a row without a rise that end the stage")
    length_quarter: Literal[1, 2, 3, 4] | None = Field(
        default=None,
        description="watch a quarter of the problems, ordered by the length of their completions when the stage "
        "starts; 4: the longest; default: all problems",
    )


class EvalSpec(Section):
    """Held-out evaluation on the rollout workers."""

    every: NonNegative = Field(
        default=0, description="RL steps or offline updates between evaluations; 0: only between stages"
    )
    samples: Positive = Field(default=1, description="completions a problem")
    temperature: Annotated[float, Field(ge=0)] = 0.0
    top_p: Annotated[float, Field(gt=0, le=1)] = Field(default=1.0, description="smallest share of the distribution")
    max_new_tokens: Positive | None = Field(default=None, description="default: rollout.max_new_tokens")
    early_stop: EarlyStopSpec | None = Field(default=None, description="of RL stages; default: none")


class CheckpointSpec(Section):
    """``every`` RL steps or offline updates, and ``sft_every`` updates of an SFT stage; the newest ``keep`` stay."""

    every: Positive = 10
    sft_every: Positive = 100
    keep: Positive = 2


class LogSpec(Section):
    """``metrics.jsonl`` is always written; trackers are accelerate's."""

    trackers: list[Literal["tensorboard", "wandb"]] = Field(default_factory=list)
    rollouts_every: Positive = 5
    rollouts_kept: Positive = Field(default=8, description="rollouts kept at such a step, whole groups first")


class ContractSpec(Section):
    """Bounds of the scoring contract, nats. ``None``: mean 1e-3 and maximum 5e-2 in fp32, 0.1 and 4 in bf16."""

    max_mean_gap: Annotated[float, Field(gt=0)] | None = None
    max_gap: Annotated[float, Field(gt=0)] | None = None


class Recipe(Section):
    """One experiment: no machine facts."""

    name: FolderName
    description: str = ""
    seed: NonNegative = 0
    policy: ModelSpec
    teacher: AnyTeacher | None = None
    privileged: PrivilegedSpec | None = None
    feedback: FeedbackSpec | None = None
    data: DataSpec
    verifier: VerifierSpec = VerifierSpec()
    objective: Objective = GrpoObjective()
    advantage: AdvantageSpec = GroupAdvantage()
    rollout: RolloutSpec = RolloutSpec()
    optim: OptimSpec = OptimSpec()
    learner: LearnerSpec = LearnerSpec()
    engine: EngineSpec = EngineSpec()
    cluster: ClusterSpec = ClusterSpec()
    stages: list[Stage] = Field(default_factory=list, description="in order; none: only evaluate the policy")
    eval: EvalSpec = EvalSpec()
    checkpoint: CheckpointSpec = CheckpointSpec()
    log: LogSpec = LogSpec()
    contract: ContractSpec = ContractSpec()
    provenance: dict[str, str] = Field(default_factory=dict, description="dotted key -> where its value comes from")
