"""Teacher hacking: the student still nears the teacher while it moves away from what the teacher stands for.

    proxy(t)  = distance(teacher, student_t)       golden(t) = distance(oracle, student_t), on held-out prompts
    hacking  <=>  proxy keeps falling while golden turns up

Source: "On Teacher Hacking" (2502.02671). The exact divergence and the criterion of its power-law test are not given
there; both rules below are ours. Without an oracle, a stand-in for golden is 1 - verifier accuracy, or the distance to
a stronger model; without any, the proxy alone is held against the power law that it followed so far.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from rlkd.analysis.report import Table
from rlkd.errors import NumericsError


@dataclass(frozen=True)
class Curve:
    """A measured metric: steps (> 0, rising) and values."""

    steps: tuple[float, ...]
    values: tuple[float, ...]

    def __post_init__(self) -> None:
        rising = all(later > earlier for earlier, later in zip(self.steps, self.steps[1:], strict=False))
        if len(self.steps) != len(self.values) or not rising or (self.steps and self.steps[0] <= 0):
            raise NumericsError("a curve needs as many values as steps, and steps that are positive and rise")
        if not all(map(math.isfinite, self.values)):
            raise NumericsError("a curve with values that are not finite")


@dataclass(frozen=True)
class PowerLaw:
    """value = exp(intercept) * step^slope; ``deviation`` is the residual's standard deviation in log space."""

    slope: float
    intercept: float
    deviation: float

    def predict(self, step: float) -> float:
        return math.exp(self.intercept + self.slope * math.log(step))


def fit_power_law(curve: Curve) -> PowerLaw:
    """Least squares of log(value) on log(step). Raises: NumericsError for fewer than 3 points or values <= 0."""
    if len(curve.steps) < 3 or min(curve.values) <= 0:
        raise NumericsError("a power law needs at least 3 points with values above 0")
    x, y = np.log(curve.steps), np.log(curve.values)
    slope, intercept = np.polyfit(x, y, 1)
    residual = y - (intercept + slope * x)
    return PowerLaw(float(slope), float(intercept), float(residual.std(ddof=2)) if len(x) > 2 else 0.0)


def power_law_break(
    curve: Curve, *, first: int = 8, deviations: float = 4.0, consecutive: int = 3, floor: float = 0.01
) -> float | None:
    """The first step at which the curve leaves the power law of all points before it, or None.

    A point leaves when its log differs from the prediction by more than ``deviations`` residual deviations (at least
    ``floor``, a relative distance of 1 %, as a noiseless start would make any wiggle a break); ``consecutive`` points
    must leave on the same side. Points that left don't enter the fit.
    """
    run: list[tuple[float, float]] = []
    end = first
    for at in range(first, len(curve.steps)):
        law = fit_power_law(Curve(curve.steps[:end], curve.values[:end]))
        gap = math.log(curve.values[at]) - math.log(law.predict(curve.steps[at]))
        if abs(gap) <= deviations * max(law.deviation, floor):
            run, end = [], at + 1
            continue
        if run and (run[-1][1] > 0) != (gap > 0):
            run = []
        run.append((curve.steps[at], gap))
        if len(run) == consecutive:
            return run[0][0]
    return None


@dataclass(frozen=True)
class Hacking:
    """From ``turn`` on, golden rose by ``rise`` while proxy fell by ``fall``."""

    turn: float
    rise: float
    fall: float


def teacher_hacking(proxy: Curve, golden: Curve, *, window: int = 5, deviations: float = 4.0) -> Hacking | None:
    """Is golden above its lowest point by more than noise, while proxy is below what it was there?

    Both curves are smoothed by a median of ``window`` points. Noise is estimated from the steps between neighbouring
    points, which a slow trend hardly touches: 1.4826 * median |difference - median difference| / sqrt(2). The lowest of
    many noisy points lies about two deviations below the curve, hence the default of four.
    """
    if proxy.steps != golden.steps:
        raise NumericsError("proxy and golden must be measured at the same steps")
    if len(golden.steps) < 2 * window:
        return None
    smooth_golden, smooth_proxy = _running_median(golden.values, window), _running_median(proxy.values, window)
    differences = np.diff(golden.values)
    noise = 1.4826 * float(np.median(np.abs(differences - np.median(differences)))) / math.sqrt(2.0)
    turn = int(smooth_golden.argmin())
    rise = float(smooth_golden[-1] - smooth_golden[turn])
    fall = float(smooth_proxy[turn] - smooth_proxy[-1])
    rounding = 1e-9 * abs(float(smooth_golden[turn]))
    return Hacking(golden.steps[turn], rise, fall) if fall > 0 and rise > max(deviations * noise, rounding) else None


def _running_median(values: Sequence[float], window: int) -> Any:
    half = window // 2
    return np.array([np.median(values[max(0, at - half) : at + half + 1]) for at in range(len(values))])


def hacking_table(proxy: Curve, golden: Curve | None) -> Table:
    """What the monitor found."""
    rows: list[tuple[str, float | str | None]] = [("points", float(len(proxy.steps)))]
    if golden is not None:
        found = teacher_hacking(proxy, golden)
        rows.append(("teacher hacking", "yes" if found else "no"))
        if found:
            rows += [
                ("golden turns at step", found.turn),
                ("golden rose by", found.rise),
                ("proxy fell by", found.fall),
            ]
    if _has_law(proxy):
        rows.append(("exponent of the proxy's power law", fit_power_law(proxy).slope))
        rows.append(("proxy leaves its power law at step", power_law_break(proxy)))
    return Table("Teacher-hacking monitor", ("measure", "value"), tuple(rows))


def _has_law(curve: Curve) -> bool:
    return len(curve.steps) >= 3 and min(curve.values) > 0


def draw_hacking(proxy: Curve, golden: Curve | None) -> Callable[[Any], None]:
    """The path in the proxy-golden plane where golden is known, else proxy over steps, with its power law if any."""

    def draw(axes: Any) -> None:
        if golden is not None:
            axes.plot(proxy.values, golden.values, marker=".")
            axes.annotate("start", (proxy.values[0], golden.values[0]))
            axes.annotate("end", (proxy.values[-1], golden.values[-1]))
            axes.set(xlabel="proxy: distance to the teacher", ylabel="golden: distance to the truth")
        else:
            axes.plot(proxy.steps, proxy.values, marker=".", label="proxy")
            if _has_law(proxy):
                law = fit_power_law(proxy)
                axes.plot(proxy.steps, [law.predict(step) for step in proxy.steps], "--", label="power law")
                axes.set(xscale="log", yscale="log")
            axes.legend()
            axes.set(xlabel="step", ylabel="proxy")
        axes.set_title("Teacher-hacking monitor")

    return draw
