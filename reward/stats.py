"""Counts of a pool's verdicts, and the alarm for a verifier that says the same of everything."""

from __future__ import annotations

import threading
from collections import Counter
from dataclasses import dataclass, field

from reward.verdict import Verdict


@dataclass
class PoolStats:
    """Live counts; every field only grows. ``alarm_after`` same verdicts in a row from the start raise an alarm."""

    alarm_after: int = 256
    judged: int = 0
    abstained: int = 0
    replaced: int = 0
    slowest_s: float = 0.0
    score_sum: float = 0.0
    reasons: Counter[str] = field(default_factory=Counter)
    alarms: list[str] = field(default_factory=list)
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def count(self, verdict: Verdict, seconds: float) -> str | None:
        """Add one verdict; returns the alarm when this one raises it."""
        with self._lock:
            self.judged += 1
            self.reasons[verdict.reason] += 1
            self.slowest_s = max(self.slowest_s, seconds)
            if verdict.score is None:
                self.abstained += 1
            else:
                self.score_sum += verdict.score
            return self._alarm()

    def count_replacement(self) -> None:
        with self._lock:
            self.replaced += 1

    def _alarm(self) -> str | None:
        if self.judged < self.alarm_after or self.judged % self.alarm_after or self.alarms:
            return None
        scored = self.judged - self.abstained
        if scored == 0:
            self.alarms.append(f"all of the first {self.judged} verdicts abstained ({dict(self.reasons)})")
        elif self.score_sum == 0:
            self.alarms.append(f"none of the first {self.judged} answers scored above 0 ({dict(self.reasons)})")
        elif self.score_sum == scored:
            self.alarms.append(f"every one of the first {self.judged} answers scored 1 ({dict(self.reasons)})")
        return self.alarms[-1] if self.alarms else None

    def snapshot(self) -> dict[str, float]:
        """Flat numbers for a metrics logger."""
        with self._lock:
            shares = {f"reason/{name}": float(count) for name, count in sorted(self.reasons.items())}
            return {
                "judged": float(self.judged),
                "abstained": float(self.abstained),
                "replaced": float(self.replaced),
                "slowest_s": self.slowest_s,
                "alarms": float(len(self.alarms)),
                **shares,
            }
