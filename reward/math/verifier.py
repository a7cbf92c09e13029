"""The math verifier: extract, normalise, compare exactly, then by structure and value."""

from __future__ import annotations

import re

from reward.math.compare import equivalent
from reward.math.extract import Extracted, extract
from reward.math.gold import BadGoldError, flat, gold_text, readings, squeezed
from reward.math.nodes import Node
from reward.math.normalise import clean
from reward.math.policy import policy_of
from reward.protocol import Example
from reward.verdict import Verdict

_YES, _NO = frozenset(["yes", "true"]), frozenset(["no", "false"])
_ARTICLE = re.compile(r"^(?:an?|the)\s+(?=\w\w)", re.IGNORECASE)
_LISTED = re.compile(r"\s*(?:[,;]\s*(?:and\s+)?|\band\s+)")
_ABSENT = re.compile(r"^(?:d\.?n\.?e|doesn't exist)$")
SHOWN = 200  # characters of the parsed answer that a verdict carries


class MathVerifier:
    """Judges a final answer against ``example["answer"]``: text, LaTeX, number, or a solution that ends in ``#### x``.

    Args:
        policy: ``lenient`` (default) or ``strict``; every choice between them is a named switch of Policy.

    Nothing of a completion is ever evaluated as code, and only numbers of bounded size are computed.
    """

    name = "math"
    reads = frozenset[str]()

    def __init__(self, *, policy: str = "lenient") -> None:
        self.policy = policy_of(policy)

    def verify(self, completion: str, example: Example) -> Verdict:
        try:
            gold = gold_text(example.get("answer"))
        except BadGoldError as error:
            return Verdict.abstain("bad_gold", str(error))
        if not isinstance(completion, str):
            return Verdict.wrong(reason="unparsed", detail=f"completion is {type(completion).__name__}")
        found = extract(completion, prose=self.policy.prose)
        if found is None:
            return Verdict.wrong(reason="unparsed", detail="no committed final answer")
        text = clean(self._one_of_equals(found))
        if self._accepts(gold, text, found):
            return Verdict.right(text[:SHOWN])
        understood = bool(readings(text)) or bool(re.search(r"[^\W\d_]{2}", flat(text)))
        return Verdict.wrong(text[:SHOWN], reason="wrong" if understood else "unparsed")

    def check_gold(self, example: Example) -> Verdict:
        """Right when the gold is an answer, has a finite value, and equals itself."""
        try:
            gold = gold_text(example.get("answer"))
        except BadGoldError as error:
            return Verdict.abstain("bad_gold", str(error))
        return Verdict.right(gold[:SHOWN])

    def _accepts(self, gold: str, text: str, found: Extracted) -> bool:
        if not text or (not self.policy.leading_approx and re.match(r"\\approx\b", text)):
            return False
        if squeezed(gold) == squeezed(text):
            return True
        if self._words_agree(gold, text):
            return True
        if _is_word(gold):
            return False
        golds = readings(gold)
        if any(self._pair(one, two) for one, two in zip(golds, _aligned(text, len(golds)), strict=False)):
            return True
        if len(golds) > 1 and any(
            self._pair(one, two) for one in golds[1:] for two in readings(text) if two.op == "list"
        ):
            return True
        if found.comma and self.policy.decimal_comma and re.search(r"\d,\d", text):
            dotted = readings(re.sub(r"(?<=\d),(?=\d)", ".", text))
            return any(self._pair(one, two) for one in golds for two in dotted)
        return self._in_parts(golds, found)

    def _one_of_equals(self, found: Extracted) -> str:
        """Boxes side by side that state one value in two forms are one answer; different values are a guess list."""
        trees = [readings(clean(box)) for box in found.side_by_side]
        if len(trees) > 1 and all(trees) and all(self._pair(trees[-1][0], tree[0]) for tree in trees[:-1]):
            return found.side_by_side[-1]
        return found.text

    def _pair(self, gold: Node, answer: Node) -> bool:
        try:
            return equivalent(gold, answer, self.policy)
        except RecursionError:
            return False

    def _in_parts(self, golds: tuple[Node, ...], found: Extracted) -> bool:
        """A gold of several parts, answered with one box a part, in the gold's order."""
        if not self.policy.parts_in_boxes or len(found.parts) < 2:
            return False
        parts = [readings(clean(part)) for part in found.parts]
        if not all(parts):
            return False
        trees = [part[0] for part in parts]
        return any(
            gold.op == "list"
            and len(gold.args) == len(trees)
            and all(self._pair(one, two) for one, two in zip(gold.args, trees, strict=True))
            for gold in golds
        )

    def _words_agree(self, gold: str, text: str) -> bool:
        """Case-folded words; only for golds that are words, never by containment."""
        if not _is_word(gold) and readings(gold):
            return False
        ours, theirs = (
            _LISTED.sub(", ", _ABSENT.sub("does not exist", _ARTICLE.sub("", flat(side)))) for side in (gold, text)
        )
        if ours == theirs:
            return bool(re.search(r"[^\W\d_]", ours)) and (_is_word(gold) or squeezed(ours) == squeezed(theirs))
        side = _YES if ours in _YES else _NO if ours in _NO else None
        if side is None:
            return False
        if theirs in _YES | _NO:
            return self.policy.yes_is_true and theirs in side
        return self.policy.leading_word and _leads(theirs, ours)


def _leads(text: str, word: str) -> bool:
    """The word stands first, cut off by punctuation or a reason, and no word of the other side follows."""
    if not re.match(rf"{re.escape(word)}\s*(?:[,;:.—–-]|because\b|since\b|as\b)", text):
        return False
    return not set(re.findall(r"\w+", text)) & ((_YES | _NO) - {word}) and " or " not in text


def _is_word(text: str) -> bool:
    """Whether a gold is words rather than a formula."""
    plain = _ARTICLE.sub("", flat(text))
    return bool(re.fullmatch(r"[^\W\d_]{2,}(?:[ '-][^\W\d_]+)*", plain)) and not readings(_ARTICLE.sub("", text))


def _aligned(text: str, count: int) -> tuple[Node, ...]:
    """The answer read as the gold is: grouped commas against grouped commas, lists against lists."""
    trees = readings(text)
    return trees if len(trees) >= count or not trees else (*trees, *([trees[-1]] * (count - len(trees))))
