"""Which prompts a step takes and with which seeds: pure functions of (seed, step, index); nothing has to be saved."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import lru_cache
from typing import TypeVar

import numpy as np

Item = TypeVar("Item")


def derive_seed(*parts: int | str) -> int:
    """A 31-bit seed from any path of names and numbers; equal paths give equal seeds on every machine."""
    text = "/".join(str(part) for part in parts)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=4).digest(), "big") >> 1


def prompts_of_step(prompts: Sequence[Item], *, seed: int, step: int, per_step: int) -> list[Item]:
    """The step's prompts (or pairs): an endless stream of per-epoch permutations, cut into steps."""
    count = len(prompts)
    chosen = []
    for position in range(step * per_step, (step + 1) * per_step):
        epoch, index = divmod(position, count)
        chosen.append(prompts[_permutation(seed, epoch, count)[index]])
    return chosen


@lru_cache(maxsize=4)
def _permutation(seed: int, epoch: int, count: int) -> tuple[int, ...]:
    order = np.random.Generator(np.random.Philox(derive_seed(seed, "epoch", epoch))).permutation(count)
    return tuple(int(index) for index in order)
