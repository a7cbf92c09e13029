"""Run by a test: a DeepSpeed rank adds up 64 micro-batches in bfloat16; prints how far from their float32 sum it is."""

from __future__ import annotations

import os
import sys
from copy import deepcopy
from typing import Any

os.environ |= {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "LOCAL_SIZE": "1", "DS_ACCELERATOR": "cpu"}

import torch
from torch import Tensor, nn

from rlkd.learner.deepspeed_engine import DeepSpeedEngine
from rlkd.recipe.schema import LearnerSpec, OptimSpec


class Policy(nn.Module):
    """Has its model under the name that the engine looks for."""

    def __init__(self) -> None:
        super().__init__()
        self.model = nn.Sequential(nn.Linear(64, 128), nn.Tanh(), nn.Linear(128, 64))

    def forward(self, inputs: Tensor) -> Any:
        return self.model(inputs).float().square().mean() / 64


def main(stage: int, store: str) -> None:
    torch.distributed.init_process_group("gloo", init_method=f"file://{store}", rank=0, world_size=1)
    torch.manual_seed(0)
    policy = Policy()
    plain = deepcopy(policy).bfloat16()
    learner = LearnerSpec(precision="bf16", zero_stage=stage)  # type: ignore[arg-type]
    engine = DeepSpeedEngine(policy, learner=learner, optim=OptimSpec(), world_size=1)  # type: ignore[arg-type]
    batches = [torch.randn(8, 64, dtype=torch.bfloat16) for _ in range(64)]
    wanted = {name: torch.zeros_like(p, dtype=torch.float32) for name, p in plain.model.named_parameters()}
    for index, batch in enumerate(batches):
        plain.zero_grad()
        plain(batch).backward()
        for name, parameter in plain.model.named_parameters():
            assert parameter.grad is not None
            wanted[name] += parameter.grad.float()
        engine.backward(engine.engine(batch), last=index == len(batches) - 1)
    found = engine.whole_gradients()
    gap = sum(float((found[name].float() - tensor).square().sum()) for name, tensor in wanted.items())
    print("relative error", (gap / sum(float(tensor.square().sum()) for tensor in wanted.values())) ** 0.5)


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2])
