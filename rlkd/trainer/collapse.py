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

    It fires when the medians of the last ``recent`` updates lie below those of the ``window`` before them by more
    than ``fall`` for right AND wrong traces, and one recent gradient norm exceeds ``spike`` times the median before.
    A slow decline never loses ``fall`` within a window, a single spike leaves the medians of the log-probs alone.
    After a finding it is silent for a window, so that one collapse is one event.

    Source: REDI (2505.24850), stability findings. Differs: the thresholds are ours, the paper shows curves.
    """

    spec: CollapseSpec
    history: list[Figures] = field(default_factory=list)
    silent: int = 0
    found: int = 0
    latest: Collapse | None = None  # the last update's finding

    def update(self, step: int, figures: Figures) -> Collapse | None:
        """Take one update's figures. Returns: the finding, at most one a window."""
        self.latest = self._judge(step, figures) if self.spec.action != "off" else None
        self.found += self.latest is not None
        return self.latest

    def _judge(self, step: int, figures: Figures) -> Collapse | None:
        spec = self.spec
        self.history = [*self.history, figures][-(spec.window + spec.recent) :]
        self.silent = max(0, self.silent - 1)
        if self.silent or len(self.history) < spec.window + spec.recent:
            return None
        before, now = self.history[: spec.window], self.history[spec.window :]
        right, wrong = ((_middle(before, index), _middle(now, index)) for index in (0, 1))
        norm = _middle(before, 2), max(each[2] for each in now)
        fell = all(old - new > spec.fall for old, new in (right, wrong))
        if not (fell and norm[1] > spec.spike * norm[0]):
            return None
        self.silent = spec.window
        return Collapse(step, right, wrong, norm)

    def state(self) -> dict[str, object]:
        """What a checkpoint keeps."""
        return {"history": [list(figures) for figures in self.history], "silent": self.silent, "found": self.found}

    def restore(self, history: Iterable[Sequence[float]], silent: int, found: int) -> None:
        """Go on from ``state``."""
        self.history = [(right, wrong, norm) for right, wrong, norm in history]
        self.silent, self.found = silent, found


def _middle(rows: Sequence[Figures], index: int) -> float:
    return median(row[index] for row in rows)
