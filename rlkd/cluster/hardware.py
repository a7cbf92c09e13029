"""What there is to run on."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass

from rlkd.launch import cpu_bfloat16
from rlkd.recipe import Recipe


@dataclass(frozen=True)
class Hardware:
    """The cluster's totals."""

    cpus: int
    gpus: int
    nodes: int = 1

    @property
    def on_gpu(self) -> bool:
        return self.gpus > 0

    def describe(self) -> str:
        return f"{self.nodes} node(s), {self.cpus} CPU cores, {self.gpus} GPUs"


def usable_cpus() -> int:
    """Cores that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def this_machine() -> Hardware:
    """What is here, before Ray is asked."""
    import torch

    return Hardware(usable_cpus(), torch.cuda.device_count())


def slow_precisions(recipe: Recipe, hardware: Hardware) -> Iterator[str]:
    """What a recipe asks for and this machine can do, but at a fraction of float32's speed."""
    if hardware.on_gpu or cpu_bfloat16() != "none":
        return
    slow = "this CPU has no instructions for it and takes 10 to 50 times as long as with"
    if recipe.learner.precision == "bf16":
        yield f"learner.precision bf16: {slow} fp32; write auto, which takes what the machine does fast"
    if recipe.engine.dtype == "bfloat16":
        yield f"engine.dtype bfloat16: {slow} float32; write auto, which follows learner.precision"
