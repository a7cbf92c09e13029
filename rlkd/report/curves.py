"""Curves as inline SVG: static pictures that a few lines of script may label under the pointer."""

from __future__ import annotations

import html
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

WIDTH, HEIGHT = 320.0, 120.0
LEFT, RIGHT, TOP, BOTTOM = 50.0, 8.0, 8.0, 18.0
Points = Sequence[tuple[float, float]]


@dataclass(frozen=True)
class Curve:
    """One panel. ``log`` puts the values on a logarithmic axis; points without a positive value are then left out."""

    title: str
    points: Points
    unit: str = ""
    log: bool = False


@dataclass(frozen=True)
class Axis:
    """Data range -> pixels."""

    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        span = (self.high - self.low) or 1.0
        return self.start + (value - self.low) / span * (self.end - self.start)


def draw_curve(curve: Curve) -> str:
    """A panel with title, last value, line, range and step labels; empty for a curve without points."""
    points = [(x, y) for x, y in curve.points if math.isfinite(y) and (not curve.log or y > 0)]
    if not points:
        return ""
    values = [math.log10(y) if curve.log else y for _, y in points]
    low, high = min(values), max(values)
    if high == low:
        low, high = low - (abs(low) * 0.1), high + (abs(high) * 0.1 or 1.0)
    xs = Axis(points[0][0], points[-1][0], LEFT, WIDTH - RIGHT)
    ys = Axis(low, high, HEIGHT - BOTTOM, TOP)
    pixels = [(xs(x), ys(value)) for (x, _), value in zip(points, values, strict=True)]
    path = "M" + "L".join(f"{x:.1f},{y:.1f}" for x, y in pixels)
    dots = "".join(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="2"/>' for x, y in pixels) if len(pixels) < 40 else ""
    marks = ";".join(f"{x:.1f},{y:.1f},{at:g},{number(v)}" for (x, y), (at, v) in zip(pixels, points, strict=True))
    ends = [10**bound if curve.log else bound for bound in (low, high)]
    body = (
        f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{TOP}" y2="{TOP}"/>'
        f'<line class="axis" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{HEIGHT - BOTTOM}" y2="{HEIGHT - BOTTOM}"/>'
        f'<path class="line" d="{path}"/>{dots}{_labels(ends, points[0][0], points[-1][0])}'
        '<g class="cursor" visibility="hidden"><line/><circle r="3.5"/></g>'
    )
    last = f"{number(points[-1][1])}{' ' + curve.unit if curve.unit else ''}"
    return _panel(curve.title + (" (log)" if curve.log else ""), last, f'data-marks="{html.escape(marks)}"', body)


def draw_shares(title: str, steps: Sequence[float], parts: Mapping[str, Sequence[float]], unit: str) -> str:
    """Stacked bars of a step's parts, in the order given, with a legend."""
    totals = [sum(values) for values in zip(*parts.values(), strict=True)]
    if not totals:
        return ""
    width = (WIDTH - LEFT - RIGHT) / len(steps)
    ys = Axis(0.0, max(totals) or 1.0, HEIGHT - BOTTOM, TOP)
    base, body = [0.0] * len(steps), ""
    gap = min(1.0, width * 0.15) if width > 4 else 0.0
    for kind, values in enumerate(parts.values()):
        for index, value in enumerate(values):
            top, bottom = ys(base[index] + value), ys(base[index])
            x = LEFT + index * width
            size = f'width="{width - gap:.2f}" height="{bottom - top:.2f}"'
            body += f'<rect class="s{kind}" x="{x:.2f}" y="{top:.2f}" {size}/>'
            base[index] += value
    body += _labels([0.0, max(totals)], steps[0], steps[-1])
    marks = ";".join(
        f"{LEFT + (index + 0.5) * width:.1f},{ys(total):.1f},{step:g},"
        + " + ".join(f"{name} {number(values[index])}" for name, values in parts.items())
        for index, (step, total) in enumerate(zip(steps, totals, strict=True))
    )
    body += '<g class="cursor" visibility="hidden"><line/><circle r="3.5"/></g>'
    key = "".join(f'<span><i class="s{kind}"></i>{html.escape(name)}</span>' for kind, name in enumerate(parts))
    whole = sum(totals) / len(totals)
    return _panel(title, f"mean {number(whole)} {unit}", f'data-marks="{html.escape(marks)}"', body, key)


def number(value: float) -> str:
    """Short: two or three significant digits, whole thousands with separators."""
    if value == 0 or not math.isfinite(value):
        return f"{value:g}"
    if abs(value) < 1e-3:
        return f"{value:.1e}"
    return f"{value:.3g}" if abs(value) < 1000 else f"{value:,.0f}"


def _labels(ends: Sequence[float], first: float, last: float) -> str:
    return (
        f'<text x="{LEFT - 4}" y="{TOP + 6}" text-anchor="end">{number(ends[1])}</text>'
        f'<text x="{LEFT - 4}" y="{HEIGHT - BOTTOM}" text-anchor="end">{number(ends[0])}</text>'
        f'<text x="{LEFT}" y="{HEIGHT - 4}">{first:g}</text>'
        f'<text x="{WIDTH - RIGHT}" y="{HEIGHT - 4}" text-anchor="end">step {last:g}</text>'
    )


def _panel(title: str, last: str, attributes: str, body: str, key: str = "") -> str:
    legend = f'<p class="key">{key}</p>' if key else ""
    return (
        f'<figure><figcaption><b>{html.escape(title)}</b><output data-rest="{html.escape(last)}">{html.escape(last)}'
        f'</output></figcaption><svg viewBox="0 0 {WIDTH:g} {HEIGHT:g}" role="img" aria-label="{html.escape(title)}, '
        f'last {html.escape(last)}" {attributes}>{body}</svg>{legend}</figure>'
    )
