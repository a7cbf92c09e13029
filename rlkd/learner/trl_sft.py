"""Supervised fine-tuning with TRL's SFTTrainer, one rank a process. The only file that imports TRL for training."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rlkd.learner.deepspeed_engine import forget_shared_names
from rlkd.learner.schedule import learning_rate
from rlkd.learner.worker import join_process_group
from rlkd.recipe.schema import LearnerSpec, SftStage

Pair = tuple[Sequence[int], Sequence[int]]


class SftWorker:
    """Runs inside a Ray actor; rank 0 writes the result."""

    def __init__(self, *, rank: int, world_size: int, address: tuple[str, int]) -> None:
        self.rank = rank
        self.world_size = world_size
        join_process_group(rank, world_size, address)

    def train(
        self,
        *,
        folder: str,
        output: str,
        pairs: Sequence[Pair],
        stage: Mapping[str, Any],
        learner: Mapping[str, Any],
        seed: int,
        progress: str,
    ) -> dict[str, float]:
        """Fine-tune the model of ``folder`` on (prompt_ids, completion_ids) pairs and write it to ``output``.

        Returns: the last mean loss, tokens trained and seconds. ``progress`` is a file with one line a logging step.
        """
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback, set_seed

        spec, hardware = SftStage.model_validate(stage), LearnerSpec.model_validate(learner)
        set_seed(seed)
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        tokenizer = AutoTokenizer.from_pretrained(folder)
        half = Path(f"{output}.tmp")

        class Progress(TrainerCallback):  # type: ignore[misc]
            def on_log(self, _args: Any, state: Any, _control: Any, logs: Any = None, **_: Any) -> None:
                if state.is_world_process_zero and logs and "loss" in logs:
                    with Path(progress).open("a", encoding="utf-8") as stream:
                        stream.write(f"{state.global_step} {logs['loss']}\n")

        trainer = _trainer(model, tokenizer, pairs, spec, hardware, seed, half, self.world_size)
        trainer.add_callback(Progress())
        result = trainer.train()
        if hardware.zero_stage:
            forget_shared_names()
        model.to(torch.float32)
        trainer.save_model(str(half / "policy"))
        if self.rank == 0:
            tokenizer.save_pretrained(half / "policy")
            shutil.rmtree(output, ignore_errors=True)
            (half / "policy").rename(output)
            shutil.rmtree(half, ignore_errors=True)
        losses = [row["loss"] for row in trainer.state.log_history if "loss" in row]
        return {
            "loss": float(losses[-1]) if losses else float(result.training_loss),
            "tokens": float(trainer.state.num_input_tokens_seen),
            "wall_s": float(result.metrics["train_runtime"]),
        }


def _trainer(
    model: Any,
    tokenizer: Any,
    pairs: Sequence[Pair],
    stage: SftStage,
    learner: LearnerSpec,
    seed: int,
    output: Path,
    world_size: int,
) -> Any:
    import torch
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    rows = Dataset.from_dict(
        {
            "input_ids": [[*prompt, *completion] for prompt, completion in pairs],
            "completion_mask": [[0] * len(prompt) + [1] * len(completion) for prompt, completion in pairs],
        }
    )
    optim = stage.optim
    rows_per_rank = max(1, stage.batch_size // world_size)
    rows_at_once = micro_batch_rows(rows_per_rank, stage.max_length, learner.tokens_per_micro_batch)
    config = SFTConfig(
        output_dir=str(output),
        max_steps=stage.steps,
        per_device_train_batch_size=rows_at_once,
        gradient_accumulation_steps=rows_per_rank // rows_at_once,
        learning_rate=optim.lr,
        lr_scheduler_type="constant",  # replaced below by the recipe's own schedule
        adam_beta1=optim.betas[0],
        adam_beta2=optim.betas[1],
        adam_epsilon=optim.eps,
        weight_decay=optim.weight_decay,
        max_grad_norm=optim.max_grad_norm,
        max_length=stage.max_length,
        packing=stage.packing,
        completion_only_loss=True,
        bf16=learner.precision == "bf16",
        gradient_checkpointing=learner.gradient_checkpointing,
        deepspeed=_zero(learner) if learner.zero_stage else None,
        use_cpu=not torch.cuda.is_available(),
        ddp_backend="nccl" if torch.cuda.is_available() else "gloo",
        save_strategy="no",
        logging_steps=10,
        report_to=[],
        disable_tqdm=True,
        seed=seed,
        data_seed=seed,
        include_num_input_tokens_seen="all",
    )

    class Trainer(SFTTrainer):  # type: ignore[misc]
        def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
            base = optimizer or self.optimizer
            factor = [
                learning_rate(optim, step, num_training_steps) / optim.lr for step in range(num_training_steps + 1)
            ]
            self.lr_scheduler = torch.optim.lr_scheduler.LambdaLR(base, lambda step: factor[min(step, len(factor) - 1)])
            return self.lr_scheduler

    return Trainer(model=model, args=config, train_dataset=rows, processing_class=tokenizer)


def micro_batch_rows(rows: int, max_length: int, token_budget: int) -> int:
    """The most rows that divide ``rows`` and, all of ``max_length``, stay within the budget; at least one."""
    return next(count for count in range(min(rows, max(1, token_budget // max_length)), 0, -1) if rows % count == 0)


def _zero(learner: LearnerSpec) -> dict[str, Any]:
    zero: dict[str, Any] = {"stage": learner.zero_stage}
    if learner.offload_optimizer:
        zero["offload_optimizer"] = {"device": "cpu"}
    return {
        "zero_optimization": zero,
        "train_micro_batch_size_per_gpu": "auto",
        "gradient_accumulation_steps": "auto",
        "gradient_clipping": "auto",
        "bf16": {"enabled": learner.precision == "bf16"},
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
    }
