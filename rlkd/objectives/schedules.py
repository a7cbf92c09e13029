"""Coefficients as pure functions of the optimizer step (0 is the first)."""

from __future__ import annotations

import math

from rlkd.errors import NumericsError


def constant(step: int, *, value: float) -> float:
    """The same value at every step.

    Raises: NumericsError for a negative step or a value that is not finite (so do all schedules).
    Tested: test_constant_and_switch
    """
    _check(step, value=value)
    return value


def anneal(step: int, *, initial: float, decrement: float, minimum: float) -> float:
    """Falls by ``decrement`` a step down to a floor: max(initial - decrement * step, minimum).

    Raises: NumericsError when it would rise.
    Source: KDRL (2506.02208) sec 3.3: 5e-3, 5e-5, 1e-3, so that the floor is reached at step 80.
    Tested: test_anneal_reaches_the_papers_floor_at_step_80
    """
    _check(step, initial=initial, decrement=decrement, minimum=minimum)
    if decrement < 0 or minimum > initial:
        raise NumericsError(f"anneal from {initial} by {decrement} to {minimum} would rise; write a linear schedule")
    return max(initial - decrement * step, minimum)


def hard_switch(step: int, *, at: int, before: float, after: float) -> float:
    """One value on the steps before ``at``, another from there on: distil first, then pure RL (OPD-then-RLVR).

    Tested: test_constant_and_switch
    """
    _check(step, before=before, after=after)
    return before if step < at else after


def linear(step: int, *, start: float, end: float, steps: int) -> float:
    """From ``start`` at step 0 to ``end`` at step ``steps``, then flat: pi-Distill's alpha, RLTF's c_SD.

    Raises: NumericsError when ``steps`` is below 1.
    Tested: test_linear_schedule_ends
    """
    _check(step, start=start, end=end)
    if steps < 1:
        raise NumericsError(f"steps is {steps}, but must be at least 1")
    return end if step >= steps else start + (end - start) * step / steps


def _check(step: int, **numbers: float) -> None:
    if step < 0:
        raise NumericsError(f"step is {step}, but the first is 0")
    for name, number in numbers.items():
        if not math.isfinite(number):
            raise NumericsError(f"{name} is {number}, but must be finite")
