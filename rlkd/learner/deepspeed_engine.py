"""DeepSpeed: sharding, mixed precision, clipping and the optimizer. The only file that imports it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import groupby
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rlkd.learner.policy import PackedPolicy
from rlkd.recipe.schema import LearnerSpec, OptimSpec


def without_inference_ops() -> None:
    """Before DeepSpeed starts: have it build no operator for inference on CPUs, which training never calls.

    It would compile one at the first run; a run that is killed meanwhile leaves torch's mark of a build that goes on,
    and every later run waits for that to end. Once built, it keeps 66 MiB a rank in /dev/shm after the run.
    """
    import deepspeed.ops

    vars(deepspeed.ops)["__compatible_ops__"] = {}  # asked for by name: what is not there is not built


@contextmanager
def loading_sharded(learner: LearnerSpec, optim: OptimSpec, world_size: int) -> Iterator[None]:
    """Under ZeRO-3, what transformers loads meanwhile is cut into shards as it comes: no device ever holds all of it.

    Each rank still maps the checkpoint's files into its host's memory.
    """
    if (learner.zero_stage or 0) < 3:
        yield
        return
    import deepspeed
    from transformers.integrations.deepspeed import HfDeepSpeedConfig, unset_hf_deepspeed_config

    without_inference_ops()
    deepspeed.init_distributed(dist_init_required=False, auto_mpi_discovery=False)  # the ranks have met already
    config = HfDeepSpeedConfig(_config(learner, optim, world_size))  # transformers asks for it as long as it lives
    try:
        yield
    finally:
        unset_hf_deepspeed_config()
        del config


class DeepSpeedEngine:
    """One rank of the sharded model and its optimizer.

    Losses are scaled by the caller's global denominators; gradients are summed over ranks (DeepSpeed averages, so the
    loss is multiplied by the number of ranks here).
    """

    def __init__(self, policy: PackedPolicy, *, learner: LearnerSpec, optim: OptimSpec, world_size: int) -> None:
        import deepspeed

        self.bf16 = learner.precision == "bf16"
        self.trained = trained = [parameter for parameter in policy.parameters() if parameter.requires_grad]
        without_inference_ops()
        config = _config(learner, optim, world_size)
        # DeepSpeed's own CPU Adam is compiled at run time; it is worth that only where it keeps GPU memory free.
        optimizer = None if learner.offload_optimizer else torch.optim.AdamW(trained, **_adamw(optim))
        self.engine, *_ = deepspeed.initialize(
            model=policy, model_parameters=trained, optimizer=optimizer, config=config, dist_init_required=False
        )
        self.world_size = world_size
        self.zero_stage = learner.zero_stage or 0

    @property
    def device(self) -> torch.device:
        return torch.device(self.engine.device)

    def most(self, count: int) -> int:
        """The largest ``count`` of any rank, where a forward pass needs all of them (ZeRO-3); else this rank's own."""
        if self.zero_stage < 3 or self.world_size == 1:
            return count
        found = torch.tensor(count, device=self.device)
        torch.distributed.all_reduce(found, torch.distributed.ReduceOp.MAX)
        return int(found)

    def backward(self, loss: Tensor, *, last: bool) -> None:
        """Accumulate one micro-batch; ``last`` marks the update's final one."""
        self.engine.set_gradient_accumulation_boundary(last)
        self.engine.backward(loss * self.world_size)
        if not last:
            self.engine.step()  # bookkeeping only, before the boundary

    def step(self, lr: float) -> float:
        """One optimizer update. Returns: the global gradient norm before clipping."""
        for group in self.engine.optimizer.param_groups:
            group["lr"] = lr
        plain = self._plain_norm()
        self.engine.step()
        norm = self.engine.get_global_grad_norm()
        return float(norm if plain is None else plain)

    def _plain_norm(self) -> Tensor | None:
        """The norm where DeepSpeed does not report one: unsharded float32 parameters, reduced over ranks already."""
        if self.zero_stage or self.bf16:
            return None
        return torch.nn.utils.get_total_norm([p.grad for p in self.trained if p.grad is not None])

    def whole_gradients(self) -> dict[str, Tensor]:
        """Gradients of trained parameters, gathered over shards and summed over ranks. Call it on every rank."""
        from deepspeed.utils import safe_get_full_grad

        named = self.engine.module.model.named_parameters()
        return {name: safe_get_full_grad(p).cpu().clone() for name, p in named if p.requires_grad}

    def gathered_layers(self) -> Iterator[dict[str, Tensor]]:
        """Whole weights by transformers' names, one layer after the other: under ZeRO-3 no more is ever whole at once.

        Every rank has to go through all of them, at the same time.
        """
        import deepspeed

        state = self.engine.module.model.state_dict(keep_vars=True)
        for _, names in groupby(state, key=layer_of):
            part = {name: state[name] for name in names}
            sharded = [tensor for tensor in part.values() if isinstance(tensor, torch.nn.Parameter)]
            unique = list(dict.fromkeys(sharded)) if self.zero_stage == 3 else []
            with deepspeed.zero.GatheredParameters(unique, enabled=bool(unique)):
                yield {name: tensor.detach() for name, tensor in part.items()}

    def save(self, folder: Path) -> None:
        """Weights, master weights and optimizer moments of this rank."""
        self.engine.save_checkpoint(str(folder), tag="state", exclude_frozen_parameters=False)

    def load(self, folder: Path) -> None:
        """Undo ``save``; the number of ranks and the ZeRO stage must be the same."""
        found, _ = self.engine.load_checkpoint(str(folder), tag="state")
        if found is None:
            raise FileNotFoundError(f"DeepSpeed found no checkpoint in {folder}")


def layer_of(name: str) -> str:
    """The part of a weight's name that its whole layer shares; empty before and after the layers."""
    found = re.match(r".*?\.\d+\.", name)
    return found.group() if found else ""


def _adamw(optim: OptimSpec) -> dict[str, Any]:
    return {"lr": optim.lr, "betas": tuple(optim.betas), "eps": optim.eps, "weight_decay": optim.weight_decay}


def _config(learner: LearnerSpec, optim: OptimSpec, world_size: int) -> dict[str, Any]:
    bf16, stage = learner.precision == "bf16", learner.zero_stage or 0
    if bf16:
        # Unsharded, DeepSpeed adds bfloat16 gradients up in bfloat16: 0.8 % off after 64 micro-batches. Its stage 2
        # takes float32 for that, and with one rank it is the unsharded optimizer.
        stage = max(stage, 2)
    zero: dict[str, Any] = {"stage": stage}
    config: dict[str, Any] = {
        "train_batch_size": world_size,
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "gradient_clipping": optim.max_grad_norm,
        "zero_optimization": zero,
        "zero_allow_untested_optimizer": True,
        "bf16": {"enabled": bf16},
        "data_types": {"grad_accum_dtype": "fp32"},
        "steps_per_print": 10**9,
        "wall_clock_breakdown": False,
    }
    if learner.offload_optimizer:
        zero["offload_optimizer"] = {"device": "cpu", "pin_memory": torch.cuda.is_available()}
        config["optimizer"] = {"type": "AdamW", "params": _adamw(optim)}
    return config
