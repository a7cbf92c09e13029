"""A policy small enough to enumerate: one softmax a prefix, token 0 ends a sequence, so that lengths differ."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import torch
from torch import Tensor

VOCABULARY = 3
TOKENS = 3


class Tabular:
    """All sequences of up to ``tokens`` tokens, and the log-probabilities that a table of logits gives them."""

    def __init__(self, vocabulary: int = VOCABULARY, tokens: int = TOKENS) -> None:
        sequences = [
            s
            for length in range(1, tokens + 1)
            for s in itertools.product(range(vocabulary), repeat=length)
            if 0 not in s[:-1] and (s[-1] == 0 or length == tokens)
        ]
        prefixes = {s[:t]: 0 for s in sequences for t in range(len(s))}
        places = {prefix: i for i, prefix in enumerate(prefixes)}
        pad = [0] * tokens
        self.ids = torch.tensor([[*s, *pad][:tokens] for s in sequences])
        self.mask = torch.tensor([[t < len(s) for t in range(tokens)] for s in sequences])
        self.places = torch.tensor([[places[s[:t]] if t < len(s) else 0 for t in range(tokens)] for s in sequences])
        self.shape = (len(prefixes), vocabulary)

    def table(self, seed: int) -> Tensor:
        """Random logits of every prefix, float64, to be differentiated."""
        generator = torch.Generator().manual_seed(seed)
        return torch.randn(self.shape, generator=generator, dtype=torch.float64).requires_grad_()

    def logits(self, table: Tensor) -> Tensor:
        """[S, T, V] logits at every position of every sequence."""
        return table[self.places]

    def logprobs(self, table: Tensor) -> Tensor:
        """[S, T] log-probability of each token, 0 where the sequence has ended."""
        chosen = self.logits(table).log_softmax(-1).gather(-1, self.ids[..., None]).squeeze(-1)
        return chosen.where(self.mask, 0.0)

    def probabilities(self, table: Tensor) -> Tensor:
        """[S] probability of each sequence, differentiable."""
        return self.logprobs(table).sum(1).exp()

    def expected_gradient(self, table: Tensor, loss: Tensor, sampled_from: Tensor | None = None) -> Tensor:
        """Gradient in ``table`` of a [S, T] per-token loss, averaged over sequences of ``sampled_from``."""
        sampler = table if sampled_from is None else sampled_from
        weight = self.probabilities(sampler).detach()
        return torch.autograd.grad((weight[:, None] * loss.where(self.mask, 0.0)).sum(), table, retain_graph=True)[0]

    def gradient(self, table: Tensor, objective: Tensor) -> Tensor:
        """Gradient of a scalar that was built from ``table``."""
        return torch.autograd.grad(objective, table, retain_graph=True)[0]

    def prefix_divergence(self, table: Tensor, per_position: Callable[[Tensor], Tensor]) -> Tensor:
        """Sum of a divergence over the policy's own prefixes, in expectation; the prefixes are not differentiated."""
        weight = self.probabilities(table).detach()
        return (weight[:, None] * per_position(self.logits(table)).where(self.mask, 0.0)).sum()


def groups(world: Tabular, size: int) -> Tensor:
    """[number of groups, size]: every ordered group of sequences."""
    return torch.tensor(list(itertools.product(range(len(world.ids)), repeat=size)))
