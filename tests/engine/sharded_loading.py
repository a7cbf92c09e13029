"""Run by a test: one of two ranks loads a model for ZeRO-3, then another one whole; prints what share it keeps."""

from __future__ import annotations

import os
import sys

os.environ |= {"RANK": sys.argv[1], "WORLD_SIZE": "2", "LOCAL_RANK": sys.argv[1], "LOCAL_SIZE": "2"}
os.environ |= {"DS_ACCELERATOR": "cpu"}

import torch

from rlkd.learner.deepspeed_engine import loading_sharded
from rlkd.learner.policy import load_causal_lm
from rlkd.recipe.schema import LearnerSpec, OptimSpec


def main(rank: int, store: str, folder: str) -> None:
    torch.distributed.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    with loading_sharded(LearnerSpec(zero_stage=3), OptimSpec(), 2):
        sharded = load_causal_lm(folder, dtype=torch.float32)
    whole = load_causal_lm(folder, dtype=torch.float32)
    total = sum(parameter.numel() for parameter in whole.parameters())
    kept = sum(parameter.numel() + parameter.ds_tensor.numel() for parameter in sharded.parameters())
    print("share", kept / total)


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2], sys.argv[3])
