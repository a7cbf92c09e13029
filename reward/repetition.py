"""Repetition as a score: the share of n-grams that are new. Use as a shaping term."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

from reward.protocol import Example
from reward.verdict import Verdict
from rlkd.errors import VerifierError


def distinct_share(tokens: Sequence[Hashable], size: int) -> float:
    """Distinct n-grams over all n-grams; 1 for a text shorter than one n-gram."""
    total = len(tokens) - size + 1
    return len({tuple(tokens[at : at + size]) for at in range(total)}) / total if total > 0 else 1.0


class RepetitionVerifier:
    """Score 1 while at least ``allowed`` of all n-grams are distinct, falling linearly to 0 when none is.

    Counts over ``example["completion_ids"]`` (token ids) where given, else over words; languages without blanks are
    counted by character.

    Args:
        size: words or tokens in an n-gram.
        allowed: share of distinct n-grams below which the score falls.
    """

    name = "repetition"
    reads = frozenset({"completion_ids"})

    def __init__(self, *, size: int = 4, allowed: float = 0.5) -> None:
        if size < 1 or not 0 < allowed <= 1:
            raise VerifierError(f"repetition: size={size}, allowed={allowed}; accepted: size >= 1, 0 < allowed <= 1")
        self._size, self._allowed = size, allowed

    def verify(self, completion: str, example: Example) -> Verdict:
        tokens: Sequence[Hashable] | None = example.get("completion_ids")
        if tokens is None:
            words = (completion or "").split()
            tokens = words if len(words) * 12 >= len(completion or "") else list(completion)
        share = distinct_share(tokens, self._size)
        return Verdict.graded(min(1.0, share / self._allowed), parsed=f"{share:.3f}")

    def check_gold(self, example: Example) -> Verdict:  # noqa: ARG002 - repetition has no gold
        return Verdict.right()
