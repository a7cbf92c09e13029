"""What the tests of objectives share: a small world with scores, gradients of its exact objectives, rows by hand."""

from __future__ import annotations

import torch
from tabular import Tabular
from torch import Tensor

from rlkd.divergences import forward_kl, reverse_kl

WORLD = Tabular()
SCORES = torch.linspace(-1, 2, len(WORLD.ids), dtype=torch.float64).cos()
CREDIT = SCORES[:, None].expand_as(WORLD.mask)


def expected_score_gradient(table: Tensor) -> Tensor:
    return WORLD.gradient(table, (WORLD.probabilities(table) * SCORES).sum())


def one_token_world() -> tuple[Tabular, Tensor]:
    world = Tabular(vocabulary=5, tokens=1)
    return world, torch.linspace(-2, 2, 5, dtype=torch.float64).exp()


def row(*values: float) -> Tensor:
    return torch.tensor([values], dtype=torch.float64)


def local_gradients(table: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients of the expected reverse and forward KL at the policy's own prefixes."""
    fixed = WORLD.logits(teacher)
    reverse = WORLD.prefix_divergence(table, lambda z: reverse_kl(policy_logits=z, teacher_logits=fixed))
    forward = WORLD.prefix_divergence(table, lambda z: forward_kl(policy_logits=z, teacher_logits=fixed))
    return WORLD.gradient(table, reverse), WORLD.gradient(table, forward)


def pair(seed: int = 7) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    table, teacher = WORLD.table(seed), WORLD.table(seed + 100).detach()
    return table, teacher, {"policy_logprobs": WORLD.logprobs(table), "teacher_logprobs": WORLD.logprobs(teacher)}
