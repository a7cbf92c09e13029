"""Whether a completion has the think/answer structure. Says nothing about the answer."""

from __future__ import annotations

import re

from reward.protocol import Example
from reward.text import until_stop
from reward.verdict import Verdict


class FormatVerifier:
    """One non-empty thinking block, first thing in the completion, then an answer; no other tag of the two kinds.

    The opening tag may be missing where the template wrote it: with ``example["prompt"]`` that is when the prompt ends
    with it, without a prompt always.

    Args:
        think: name of the thinking tag.
        answer: name of the answer tag; with ``require_answer_tag`` exactly one such block must end the completion.
    """

    name = "format"
    reads = frozenset({"prompt"})

    def __init__(self, *, think: str = "think", answer: str = "answer", require_answer_tag: bool = False) -> None:
        self._open, self._close = f"<{think}>", f"</{think}>"
        self._answer_open, self._answer_close = f"<{answer}>", f"</{answer}>"
        self._require = require_answer_tag

    def verify(self, completion: str, example: Example) -> Verdict:
        fault = self._fault(until_stop(completion or ""), example)
        return Verdict.wrong(detail=fault) if fault else Verdict.right()

    def check_gold(self, example: Example) -> Verdict:  # noqa: ARG002 - a format has no gold
        return Verdict.right()

    def _fault(self, text: str, example: Example) -> str:
        prefilled = self._prefilled(example)
        opens, closes = text.count(self._open), text.count(self._close)
        if closes != 1:
            return f"{closes} closing think tags, not 1"
        if opens > 1 or (opens == 0 and prefilled is False) or (opens == 1 and prefilled is True):
            return f"{opens} opening think tags"
        head, _, tail = text.partition(self._close)
        if opens and not head.lstrip().startswith(self._open):
            return "text before the thinking block"
        if not head.replace(self._open, "", 1).strip():
            return "empty thinking block"
        return self._answer_fault(head, tail)

    def _answer_fault(self, head: str, tail: str) -> str:
        if not tail.strip():
            return "nothing after the thinking block"
        opens, closes = tail.count(self._answer_open), tail.count(self._answer_close)
        if opens != closes or opens > 1 or (self._answer_close in head and self._require):
            return f"{opens} opening and {closes} closing answer tags"
        block = re.fullmatch(rf"(?s).*{re.escape(self._answer_open)}(.*){re.escape(self._answer_close)}\s*", tail)
        if opens and (block is None or not block[1].strip()):
            return "answer block empty or not last"
        return "" if opens or not self._require else "no answer block"

    def _prefilled(self, example: Example) -> bool | None:
        """True or False where the prompt tells; None where there is no prompt to ask."""
        prompt = example.get("prompt")
        return prompt.rstrip().endswith(self._open) if isinstance(prompt, str) else None
