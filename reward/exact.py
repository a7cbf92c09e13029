"""Normalised text equality, for answers that are words."""

from __future__ import annotations

from reward.protocol import Example
from reward.text import answer_text, fold
from reward.verdict import Verdict


class ExactVerifier:
    """Accepts the gold text and nothing else, after Unicode, case and blank folding.

    ``example["answer"]`` may be a list of equally good golds. A substring never counts.
    """

    name = "exact"
    reads = frozenset[str]()

    def __init__(self, *, case_sensitive: bool = False) -> None:
        self._case_sensitive = case_sensitive

    def verify(self, completion: str, example: Example) -> Verdict:
        golds = self._golds(example)
        if not golds:
            return Verdict.abstain("bad_gold", "empty answer")
        answer = self._fold(answer_text(completion))
        if not answer:
            return Verdict.wrong(reason="unparsed")
        return Verdict.right(answer) if answer in golds else Verdict.wrong(answer)

    def check_gold(self, example: Example) -> Verdict:
        return Verdict.right() if self._golds(example) else Verdict.abstain("bad_gold", "empty answer")

    def _golds(self, example: Example) -> set[str]:
        answer = example.get("answer")
        rows = answer if isinstance(answer, (list, tuple)) else [answer]
        return {folded for row in rows if row is not None and (folded := self._fold(str(row)))}

    def _fold(self, text: str) -> str:
        return fold(text, keep_case=self._case_sensitive)
