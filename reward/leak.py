"""Whether a completion copies or names the privileged text that only the teacher was shown."""

from __future__ import annotations

import re

from reward.protocol import Example
from reward.text import fold
from reward.verdict import Verdict
from rlkd.errors import VerifierError


class LeakVerifier:
    """Score 1 without a leak; ``weight`` less for each keyword occurrence and for each copied run of words, down to 0.

    Reads ``example["privileged"]`` (text) and ``example["prompt"]`` (what the student may see: runs that stand there
    too are no leak). Nothing privileged, nothing to leak.

    Args:
        run: words in a row that count as copied.
        keywords: words that speak of the privileged text ("hint", "reference solution").
        weight: pi-Distill's 0.1 for each occurrence.
    """

    name = "leak"
    reads = frozenset({"privileged", "prompt"})

    def __init__(
        self,
        *,
        run: int = 8,
        keywords: tuple[str, ...] | list[str] = ("privileged", "reference solution", "secret information", "the hint"),
        weight: float = 0.1,
    ) -> None:
        if run < 2 or not 0 < weight <= 1:
            raise VerifierError(f"leak: run={run}, weight={weight}; accepted: run >= 2, 0 < weight <= 1")
        self._run, self._weight = run, weight
        words = [word.casefold() for word in keywords]
        self._keywords = re.compile(rf"\b(?:{'|'.join(map(re.escape, words))})\b") if words else None

    def verify(self, completion: str, example: Example) -> Verdict:
        privileged = example.get("privileged")
        if not isinstance(privileged, str) or not privileged.strip():
            return Verdict.right(detail="nothing privileged")
        prompt = str(example.get("prompt") or "")
        text = fold(completion or "")
        named = len(self._keywords.findall(text)) if self._keywords else 0
        copied = self._copied(text, fold(privileged), fold(prompt))
        leaks = named + copied
        return Verdict.graded(max(0.0, 1.0 - self._weight * leaks), parsed=f"{named} named, {copied} copied")

    def check_gold(self, example: Example) -> Verdict:  # noqa: ARG002 - no gold
        return Verdict.right()

    def _copied(self, text: str, privileged: str, prompt: str) -> int:
        """Maximal stretches of the text made of runs that the privileged text has and the prompt lacks."""
        secret = _runs(privileged.split(), self._run) - _runs(prompt.split(), self._run)
        words = text.split()
        count, inside = 0, False
        for at in range(len(words) - self._run + 1):
            hit = tuple(words[at : at + self._run]) in secret
            count += hit and not inside
            inside = hit
        return count


def _runs(words: list[str], size: int) -> set[tuple[str, ...]]:
    return {tuple(words[at : at + size]) for at in range(len(words) - size + 1)}
