"""What the divergence tests share."""

from __future__ import annotations

import torch
from torch import Tensor

FAMILY = "divergences"
SETTINGS: list[tuple[str, float | None]] = [
    ("forward_kl", None),
    ("reverse_kl", None),
    ("jensen_shannon", 0.5),
    ("jensen_shannon", 0.1),
    ("skewed_forward_kl", 0.1),
    ("skewed_reverse_kl", 0.3),
    ("total_variation", None),
]


def logits(seed: int = 0, *shape: int) -> Tensor:
    return torch.randn(shape or (4, 6), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
