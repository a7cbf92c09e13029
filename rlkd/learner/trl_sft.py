"""Supervised fine-tuning with TRL's SFTTrainer, one rank a process. The only file that imports TRL for training."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rlkd.checkpoint import read_json, write_json
from rlkd.errors import CheckpointError
from rlkd.learner.deepspeed_engine import without_inference_ops
from rlkd.learner.schedule import learning_rate
from rlkd.learner.worker import join_process_group
from rlkd.recipe.schema import CheckpointSpec, LearnerSpec, SftStage

Pair = tuple[Sequence[int], Sequence[int]]
_COMPLETE = "step"  # a checkpoint is called checkpoint-N while it is written, and step-N from then on


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
        checkpoint: Mapping[str, Any],
        resume: str | None = None,
    ) -> dict[str, float]:
        """Fine-tune the model of ``folder`` on (prompt_ids, completion_ids) pairs and write it to ``output``.

        Args:
            output: the folder of the fine-tuned model; checkpoints lie beside it, see ``latest_checkpoint``.
            pairs: (prompt ids, completion ids) of every solution.
            progress: a file that gets one line an update: its number and the loss, a mean of the last few.
            checkpoint: a ``CheckpointSpec``.
            resume: a checkpoint of the same stage with the same ranks; training goes on as if never interrupted.

        Returns: the last mean loss, tokens trained, and seconds since the start or the checkpoint.
        """
        import torch
        from transformers import AutoTokenizer, TrainerCallback, set_seed

        spec, hardware = SftStage.model_validate(stage), LearnerSpec.model_validate(learner)
        saving = CheckpointSpec.model_validate(checkpoint)
        set_seed(seed)
        tokenizer = AutoTokenizer.from_pretrained(folder)
        half = _work_folder(output)

        class Progress(TrainerCallback):  # type: ignore[misc]
            def on_log(self, _args: Any, state: Any, _control: Any, logs: Any = None, **_: Any) -> None:
                if state.is_world_process_zero and logs and "loss" in logs:
                    with Path(progress).open("a", encoding="utf-8") as stream:
                        stream.write(f"{state.global_step} {_mean_loss(state.log_history)}\n")

            def on_step_end(self, _args: Any, state: Any, control: Any, **_: Any) -> None:
                if state.global_step >= state.max_steps:
                    control.should_save = False  # what the stage ends with is written below

            def on_save(self, _args: Any, state: Any, _control: Any, **_: Any) -> None:
                trainer.accelerator.wait_for_everyone()  # until every rank's part of it is written
                if state.is_world_process_zero:
                    _keep_checkpoint(half, state.global_step, saving.keep)

        if hardware.zero_stage:
            without_inference_ops()
        trainer = _trainer(folder, tokenizer, pairs, spec, hardware, seed, half, self.world_size, saving.sft_every)
        trainer.add_callback(Progress())
        result = trainer.train(resume_from_checkpoint=resume)
        if (hardware.zero_stage or 0) < 3:  # there the shards are gathered as they are
            trainer.model.to(torch.float32)
        trainer.save_model(str(half / "policy"))
        record = {
            "loss": _mean_loss(trainer.state.log_history),
            "tokens": float(trainer.state.num_input_tokens_seen),
            "wall_s": float(result.metrics["train_runtime"]),
        }
        if self.rank == 0:
            _hand_over(half, Path(output), tokenizer, record)
        return record


def _trainer(
    folder: str,
    tokenizer: Any,
    pairs: Sequence[Pair],
    stage: SftStage,
    learner: LearnerSpec,
    seed: int,
    output: Path,
    world_size: int,
    checkpoint_every: int,
) -> Any:
    import torch
    from datasets import Dataset
    from transformers import AutoModelForCausalLM
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
        save_strategy="steps",
        save_steps=checkpoint_every,
        logging_steps=1,
        report_to=[],
        disable_tqdm=True,
        seed=seed,
        data_seed=seed,
        include_num_input_tokens_seen="all",
    )

    # after its settings: with ZeRO-3 among them, transformers shards the weights as it reads them
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)

    class Trainer(SFTTrainer):  # type: ignore[misc]
        def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
            base = optimizer or self.optimizer
            factor = [
                learning_rate(optim, step, num_training_steps) / optim.lr for step in range(num_training_steps + 1)
            ]
            self.lr_scheduler = torch.optim.lr_scheduler.LambdaLR(base, lambda step: factor[min(step, len(factor) - 1)])
            return self.lr_scheduler

    return Trainer(model=model, args=config, train_dataset=rows, processing_class=tokenizer)


def _work_folder(output: str | Path) -> Path:
    """Where a stage that writes ``output`` keeps what it has until then."""
    return Path(f"{output}.tmp")


def latest_checkpoint(output: str | Path) -> Path | None:
    """The newest complete checkpoint of a stage that was killed; ``checkpoint_step`` tells how far it had come."""
    return max(_work_folder(output).glob(f"{_COMPLETE}-*"), key=checkpoint_step, default=None)


def checkpoint_step(checkpoint: Path) -> int:
    """Updates that a checkpoint has behind it."""
    return int(checkpoint.name.removeprefix(f"{_COMPLETE}-"))


def finished(output: str | Path) -> dict[str, float] | None:
    """What ``train`` returned for a model that is complete; None where it isn't."""
    record = _record(output)
    return read_json(record) if record.exists() and Path(output).exists() else None


def _record(output: str | Path) -> Path:
    return Path(output).parent / "trained.json"


def _hand_over(half: Path, output: Path, tokenizer: Any, record: Mapping[str, Any]) -> None:
    """Give the model its final name, and only then let the checkpoints go."""
    if not any((half / "policy").glob("*.safetensors")):
        raise CheckpointError(f"{half / 'policy'}: the fine-tuned model was saved without its weights")
    tokenizer.save_pretrained(half / "policy")
    shutil.rmtree(output, ignore_errors=True)
    (half / "policy").rename(output)
    write_json(_record(output), record)
    shutil.rmtree(half, ignore_errors=True)


def _keep_checkpoint(folder: Path, step: int, kept: int) -> None:
    """Give what TRL has just written its final name, in one step, and let the oldest go."""
    from transformers.trainer_utils import rotate_checkpoints

    (folder / f"checkpoint-{step}").rename(folder / f"{_COMPLETE}-{step}")
    rotate_checkpoints(str(folder), save_total_limit=kept, checkpoint_prefix=_COMPLETE)


def _mean_loss(history: Sequence[Mapping[str, Any]]) -> float:
    """Over the last ten updates: single ones jump about."""
    losses = [float(row["loss"]) for row in history[-11:] if "loss" in row][-10:]  # the very last may be a summary
    return sum(losses) / len(losses)


def micro_batch_rows(rows: int, max_length: int, token_budget: int) -> int:
    """The most rows that divide ``rows`` and, all of ``max_length``, stay within the budget; at least one."""
    return next(count for count in range(min(rows, max(1, token_budget // max_length)), 0, -1) if rows % count == 0)


def _zero(learner: LearnerSpec) -> dict[str, Any]:
    zero: dict[str, Any] = {"stage": learner.zero_stage, "stage3_gather_16bit_weights_on_model_save": True}
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
