"""A number within a stated tolerance, for golds that are measurements."""

from __future__ import annotations

from fractions import Fraction

from reward.math.extract import extract
from reward.math.gold import BadGoldError, gold_text, readings
from reward.math.nodes import Node
from reward.math.normalise import clean
from reward.math.units import units_agree
from reward.math.value import UndefinedError, exact
from reward.protocol import Example
from reward.verdict import Verdict
from rlkd.errors import VerifierError


class NumericVerifier:
    """Accepts |answer - gold| <= max(absolute, relative * |gold|), in exact arithmetic.

    Args:
        relative: share of the gold's magnitude.
        absolute: in the gold's unit.
    """

    name = "numeric"
    reads = frozenset[str]()

    def __init__(self, *, relative: float = 1e-2, absolute: float = 0.0) -> None:
        if not (0 <= relative < 1 and absolute >= 0):
            raise VerifierError(
                f"numeric: relative={relative}, absolute={absolute}; accepted: 0 <= relative < 1, absolute >= 0"
            )
        self._relative, self._absolute = Fraction(relative), Fraction(absolute)

    def verify(self, completion: str, example: Example) -> Verdict:
        gold = self._gold(example)
        if isinstance(gold, str):
            return Verdict.abstain("bad_gold", gold)
        found = extract(completion, prose=True) if isinstance(completion, str) else None
        text = clean(found.text) if found else ""
        answer = _number(text)
        if answer is None:
            return Verdict.wrong(text[:200] or None, reason="unparsed")
        (want, unit), (got, other) = gold, answer
        close = abs(got - want) <= max(self._absolute, self._relative * abs(want))
        return Verdict.right(text) if close and units_agree(unit, other) else Verdict.wrong(text)

    def check_gold(self, example: Example) -> Verdict:
        gold = self._gold(example)
        return Verdict.abstain("bad_gold", gold) if isinstance(gold, str) else Verdict.right(str(gold[0]))

    def _gold(self, example: Example) -> tuple[Fraction, str] | str:
        try:
            text = gold_text(example.get("answer"))
        except BadGoldError as error:
            return str(error)
        return _number(text) or f"answer {text[:80]!r} is no number"


def _number(text: str) -> tuple[Fraction, str] | None:
    for tree in readings(text):
        node: Node = tree.args[-1] if tree.op == "rel" and tree.name in ("=", "approx") else tree
        bare, unit = _split_unit(node)
        try:
            value = exact(bare)
        except UndefinedError:
            return None
        if value is not None:
            return value, node.unit or unit
    return None


def _split_unit(node: Node) -> tuple[Node, str]:
    """``3 m/s`` without \\text: symbols behind the number are its unit, since a measurement has no unknowns."""
    if node.op in ("mul", "div") and node.args[1].symbols():
        bare, unit = _split_unit(node.args[0])
        last = node.args[1]
        name = (
            last.name if last.op == "sym" else f"{last.args[0].name}^{last.args[1].value}" if last.op == "pow" else ""
        )
        joint = "/" if node.op == "div" else " " if unit else ""
        return (bare, f"{unit}{joint}{name}") if name else (node, "")
    return node, ""
