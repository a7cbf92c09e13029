"""Length penalties as scores: 1 is no penalty. Use as a shaping term, never as an outcome."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from reward.protocol import Example
from reward.verdict import Verdict
from rlkd.errors import VerifierError


def soft_overlong(length: int, *, max_length: int, buffer: int) -> float:
    """DAPO's soft overlong punishment of one completion.

        0                                          length <= max_length - buffer
        (max_length - buffer - length) / buffer    in between
        -1                                         length > max_length

    Args:
        length: generated tokens.
        max_length: where the penalty reaches -1; the generation limit, or truncated answers go unpunished.
        buffer: tokens before max_length over which it grows.

    Returns: a number in [-1, 0].
    Source: DAPO (2503.14476), eq. 13. Differs: as published.
    """
    if length <= max_length - buffer:
        return 0.0
    if length > max_length:
        return -1.0
    return (max_length - buffer - length) / buffer


def per_turn(lengths: Sequence[int], *, threshold: int, max_length: int, weight: float, floor: float) -> float:
    """pi-Distill's length penalty: per turn, averaged over the turns of a successful episode.

        turn = -2 * weight * clip((length - threshold) / (max_length - threshold), 0, 1)
        penalty = max(floor, mean(turn))

    Args:
        lengths: generated tokens of each turn.

    Returns: a number in [floor, 0]. With the published 2000, 5000, 0.1 and -0.3 the floor never binds.
    Source: pi-Distill, training details. Differs: both ends are published, the curve is not; linear here.
    """
    if not lengths:
        return 0.0
    turns = [-2 * weight * min(1.0, max(0.0, (length - threshold) / (max_length - threshold))) for length in lengths]
    return max(floor, sum(turns) / len(turns))


class LengthVerifier:
    """Score ``1 + penalty`` of a completion, from token counts, never characters.

    Reads ``example["completion_tokens"]`` (an int) or, for mode ``per_turn``, ``example["turn_tokens"]`` (a list).

    Args:
        mode: ``soft_overlong`` or ``per_turn``.
    """

    name = "length"
    reads = frozenset({"completion_tokens", "turn_tokens"})

    def __init__(
        self,
        *,
        max_length: int,
        buffer: int = 0,
        mode: str = "soft_overlong",
        threshold: int = 0,
        weight: float = 0.1,
        floor: float = -0.3,
    ) -> None:
        if mode not in ("soft_overlong", "per_turn"):
            raise VerifierError(f"length mode '{mode}'; accepted: soft_overlong, per_turn")
        if mode == "soft_overlong" and not 0 < buffer <= max_length:
            raise VerifierError(f"length: buffer={buffer}, max_length={max_length}; accepted: 0 < buffer <= max_length")
        if mode == "per_turn" and not (0 <= threshold < max_length and 0 <= weight <= 0.5 and -1 <= floor <= 0):
            raise VerifierError(
                f"length: threshold={threshold}, max_length={max_length}, weight={weight}, floor={floor}; accepted: "
                "0 <= threshold < max_length, 0 <= weight <= 0.5, -1 <= floor <= 0"
            )
        self._mode, self._max, self._buffer = mode, max_length, buffer
        self._threshold, self._weight, self._floor = threshold, weight, floor

    def verify(self, completion: str, example: Example) -> Verdict:  # noqa: ARG002 - counts, not text
        key = "completion_tokens" if self._mode == "soft_overlong" else "turn_tokens"
        counts: Any = example.get(key)
        if counts is None:
            return Verdict.abstain("error", f"length needs example['{key}'] (token counts)")
        if self._mode == "soft_overlong":
            penalty = soft_overlong(int(counts), max_length=self._max, buffer=self._buffer)
        else:
            penalty = per_turn(
                list(counts), threshold=self._threshold, max_length=self._max, weight=self._weight, floor=self._floor
            )
        return Verdict.graded(1.0 + penalty, parsed=str(counts))

    def check_gold(self, example: Example) -> Verdict:  # noqa: ARG002 - a length has no gold
        return Verdict.right()
