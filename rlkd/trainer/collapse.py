"""Collapse of an offline run, recognised while it happens: both log-probs fall off together and the norm spikes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from statistics import median

from rlkd.errors import CollapseError
from rlkd.recipe.offline import CollapseSpec

Figures = tuple[float, float, float]  # mean log-prob of a right trace's token, of a wrong one's, gradient norm


@dataclass(frozen=True)
class Collapse:
    """One recognised collapse: medians before and now (nats a token), and the norm's spike over its median."""

    step: int
    right: tuple[float, float]
    wrong: tuple[float, float]
    norm: tuple[float, float]

    def __str__(self) -> str:
        changes = [
            f"{name} {before:.3g} -> {now:.3g}"
            for name, (before, now) in (
                ("right traces' log-prob a token", self.right),
                ("wrong traces'", self.wrong),
                ("gradient norm", self.norm),
            )
        ]
        return f"collapse at update {self.step}: {', '.join(changes)}"

    def error(self, stage: str) -> CollapseError:
        """What ``action: stop`` raises."""
        return CollapseError(
            f"stages.{stage}: {self}. Write objective: {{kind: redi, rejected_weight: 0.8}} (or smaller), a lower "
            "optim.lr (symmetric and DPO bear about a fifth of REDI's), or collapse: {action: warn} to go on"
        )


@dataclass
class CollapseDetector:
    """Watches a stage's updates in order.

    Each figure's median over the last ``recent`` updates is compared with the best median that any ``window`` updates
    before them had. It fires when right AND wrong traces have lost more than ``fall`` and the gradient norm has grown
    by more than ``spike``: at once or over hundreds of updates. A slow decline at a steady norm is benign, a lone spike
    leaves medians alone. After a finding the level is what it is now, so that one collapse is one event.

    Source: REDI (2505.24850), stability findings. Differs: the thresholds are ours, the paper shows curves.
    """

    spec: CollapseSpec
    history: list[Figures] = field(default_factory=list)  # the last window + recent updates
    best: Figures | None = None  # highest log-probs and lowest norm that a window's medians had
    silent: int = 0
    found: int = 0
    latest: Collapse | None = None  # the last update's finding

    def update(self, step: int, figures: Figures) -> Collapse | None:
        """Take one update's figures. Returns: the finding, if this update completes one."""
        self.latest = self._judge(step, figures) if self.spec.action != "off" else None
        self.found += self.latest is not None
        return self.latest

    def _judge(self, step: int, figures: Figures) -> Collapse | None:
        spec = self.spec
        self.history = [*self.history, figures][-(spec.window + spec.recent) :]
        self.silent = max(0, self.silent - 1)
        if self.silent or len(self.history) < spec.window + spec.recent:
            return None
        right, wrong, norm = _medians(self.history[: spec.window])
        best = self.best or (right, wrong, norm)
        self.best = best = max(best[0], right), max(best[1], wrong), min(best[2], norm)
        now = _medians(self.history[spec.window :])
        if min(best[0] - now[0], best[1] - now[1]) <= spec.fall or now[2] <= spec.spike * best[2]:
            return None
        self.silent, self.best = spec.window, now
        return Collapse(step, *zip(best, now, strict=True))

    def state(self) -> dict[str, object]:
        """What a checkpoint keeps."""
        kept = {"history": [list(figures) for figures in self.history], "silent": self.silent, "found": self.found}
        return {**kept, "best": list(self.best) if self.best else None}

    def restore(
        self, history: Iterable[Sequence[float]], silent: int, found: int, best: Sequence[float] | None
    ) -> None:
        """Go on from ``state``."""
        self.history = [(right, wrong, norm) for right, wrong, norm in history]
        self.best = (best[0], best[1], best[2]) if best else None
        self.silent, self.found = silent, found


def _medians(rows: Sequence[Figures]) -> Figures:
    right, wrong, norm = (median(row[index] for row in rows) for index in range(3))
    return right, wrong, norm
