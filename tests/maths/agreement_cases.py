"""What the comparisons with other implementations share."""

from __future__ import annotations

import torch
from torch import Tensor


class Accelerator:
    """One process, as a trainer's accelerator: nothing to add up."""

    num_processes = 1
    device = torch.device("cpu")

    def gather(self, values: Tensor, reduction: str = "") -> Tensor:
        del reduction
        return values

    gather_for_metrics = gather
    reduce = gather


def numbers(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def gradient(loss: Tensor, *of: Tensor) -> Tensor:
    return torch.cat([g.flatten() for g in torch.autograd.grad(loss, of, retain_graph=True)])
