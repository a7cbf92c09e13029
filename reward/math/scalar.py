"""Whether two scalar trees are the same number or the same function."""

from __future__ import annotations

import re
import threading
from dataclasses import replace
from fractions import Fraction
from typing import Any

import mpmath

from reward.math.nodes import Node, substitute
from reward.math.policy import Policy
from reward.math.units import units_agree
from reward.math.value import CONSTANT_NAMES, Approximator, TooLargeError, UndefinedError, exact

DIGITS = 60
_MP = threading.RLock()  # mpmath's precision is a global
_POINTS = tuple(
    Fraction(*pair) for pair in ((17, 13), (5, 7), (29, 11), (31, 37), (41, 19), (23, 29), (43, 17), (11, 31))
)
_STEPS = frozenset(["floor", "ceil", "mod", "gcd", "lcm"])  # equal at most points though different: try whole numbers
_RADIANS = re.compile(r"rad(?:ian)?s?", re.IGNORECASE)
_PRIMES = (7, 11, 13, 17, 19, 23, 29, 31)
ROUNDED_DIGITS = 6  # significant digits from which a decimal may stand for a number that is no decimal
EXTRA_DIGITS = 3  # further decimals that an answer needs to count as a sharper value of a rounded gold


def free_symbols(node: Node) -> frozenset[str]:
    return node.symbols() - CONSTANT_NAMES


def scalar_equal(gold: Node, answer: Node, policy: Policy) -> bool:
    """Value equality of numbers and expressions; percent, degree, unit and rounding rules included."""
    if gold == answer:
        return True
    if not units_agree(gold.unit, answer.unit):
        return False
    if gold.op != answer.op and (other := _beside_a_symbol(gold, answer)) is not None and other.unit:
        radians = "degree" in (gold.op, answer.op) and _RADIANS.fullmatch(other.unit)
        return bool(radians) and policy.angle_units and same_value(gold, replace(answer, unit=""), policy)
    gold, answer = replace(gold, unit=""), replace(answer, unit="")
    if (sign := infinite_sign(gold)) or infinite_sign(answer):
        return sign == infinite_sign(answer)
    gold, answer = _signed_inside(gold), _signed_inside(answer)
    if "percent" in (gold.op, answer.op):
        return _percent_equal(gold, answer, policy)
    if "degree" in (gold.op, answer.op):
        return _degree_equal(gold, answer, policy)
    return same_value(gold, answer, policy)


def _beside_a_symbol(gold: Node, answer: Node) -> Node | None:
    """The side that is neither percent nor degree where the other is: 60 rad is not 60 degrees, nor 9 cm 9 percent."""
    marked = [side.op in ("percent", "degree") for side in map(_signed_inside, (gold, answer))]
    return None if marked[0] == marked[1] else answer if marked[0] else gold


def infinite_sign(node: Node) -> int:
    """+1 or -1 for an infinity, else 0."""
    if node.op == "neg":
        return -infinite_sign(node.args[0])
    return 1 if node.op == "infinity" else 0


def _signed_inside(node: Node) -> Node:
    """-(45 degrees) as (-45) degrees, -(3.14) as a decimal of its own."""
    if node.op != "neg":
        return node
    inner = node.args[0]
    if inner.op in ("percent", "degree"):
        return Node(inner.op, (Node("neg", inner.args),))
    return replace(inner, value=-inner.value) if inner.op == "num" else node


def _percent_equal(gold: Node, answer: Node, policy: Policy) -> bool:
    if gold.op == answer.op:
        return same_value(gold.args[0], answer.args[0], policy)
    if same_value(gold, answer, policy):
        return True
    return gold.op == "percent" and policy.bare_percent and same_value(gold.args[0], answer, policy)


def _degree_equal(gold: Node, answer: Node, policy: Policy) -> bool:
    if gold.op == answer.op:
        return same_value(gold.args[0], answer.args[0], policy)
    angle, other = (gold, answer) if gold.op == "degree" else (answer, gold)
    if "pi" in other.symbols():
        return policy.angle_units and same_value(angle, other, policy)
    return same_value(angle.args[0], other, policy)


def same_value(gold: Node, answer: Node, policy: Policy) -> bool:
    gold, answer = _signed_inside(gold), _signed_inside(answer)
    if free_symbols(gold) or free_symbols(answer):
        return same_function(gold, answer) or (policy.free_constant and _renamed_constant(gold, answer))
    try:
        left, right = exact(gold), exact(answer)
    except UndefinedError:
        return False
    if left is not None and right is not None and left == right:
        return True
    if left is not None and right is not None and gold.decimals < 0 and answer.decimals < 0:
        return False
    if (answer.decimals >= 0 or gold.decimals >= 0) and _rounds_to(gold, answer, policy):
        return True
    return (left is None or right is None) and _close(gold, answer)


def _close(gold: Node, answer: Node) -> bool:
    """Agreement of two irrational values far below any rounding, where the sums in them cancel no more than that."""
    with _MP, mpmath.workdps(DIGITS):
        left, right = Approximator({}), Approximator({})
        try:
            return _near(left.value(gold), right.value(answer), left, right)
        except (UndefinedError, TooLargeError):
            return False


def _near(left: Any, right: Any, *sides: Approximator) -> bool:
    largest = max(abs(left), abs(right))
    error = mpmath.mpf(10) ** (12 - DIGITS) * max(largest, *(side.scale for side in sides))
    if largest <= error:  # both may be zero: only if the error itself is negligible in absolute terms
        return bool(error < mpmath.mpf(10) ** -30)
    return bool(abs(left - right) <= error and error < largest * mpmath.mpf(10) ** -30)


def _rounds_to(gold: Node, answer: Node, policy: Policy) -> bool:
    """Whether a decimal is the other value written to its own last digit (rounded or cut), with enough digits."""
    if gold.decimals >= 0 and answer.decimals >= 0:
        short, long_ = (gold, answer) if gold.decimals <= answer.decimals else (answer, gold)
        sharper = policy.gold_precision and short is gold and gold.decimals >= 2 and _significant(gold) >= 2
        enough = long_.decimals - short.decimals >= EXTRA_DIGITS and sharper
        return (enough or _significant(short) >= ROUNDED_DIGITS) and _within(short, long_, cut=short is answer)
    decimal, other = (gold, answer) if gold.decimals >= 0 else (answer, gold)
    if exact(other) is not None and _terminates(exact(other)) and other.decimals < 0 and decimal is answer:
        return False  # 0.124999999 is not 1/8: a value that has a finite decimal must be met exactly
    return _significant(decimal) >= ROUNDED_DIGITS and _within(decimal, other, cut=True)


def _terminates(value: Fraction | None) -> bool:
    if value is None:
        return False
    rest = value.denominator
    for prime in (2, 5):
        while rest % prime == 0:
            rest //= prime
    return rest == 1


def _significant(node: Node) -> int:
    digits = str(abs(node.value.numerator) * 10**node.decimals // node.value.denominator).lstrip("0")
    return len(digits)


def _within(decimal: Node, other: Node, *, cut: bool) -> bool:
    with _MP, mpmath.workdps(DIGITS):
        try:
            value, written = Approximator({}).value(other), Approximator({}).value(decimal)
            difference = abs(value - written)
        except (UndefinedError, TooLargeError):
            return False
        unit = mpmath.mpf(10) ** -decimal.decimals
        if cut and abs(value) >= abs(written):  # digits are cut off towards zero, never away from it
            return bool(difference < unit)
        return bool(difference <= unit / 2 * (1 + mpmath.mpf(10) ** -20))


def rounds(decimal: Node, value: Node) -> bool:
    """Whether a decimal is a number without symbols, rounded or cut to its own last digit."""
    decimal = _signed_inside(decimal)
    return (
        decimal.op == "num" and decimal.decimals >= 0 and not free_symbols(value) and _within(decimal, value, cut=True)
    )


def same_function(gold: Node, answer: Node) -> bool:
    """Agreement at several points: positive ones always, others where both sides are real there."""
    names = sorted(free_symbols(gold) | free_symbols(answer))
    if len(names) > 40:
        return False
    seen = 0
    points = [_point(names, index, negative=index >= 3) for index in range(5)]
    if any(node.name in _STEPS for tree in (gold, answer) for node in tree.walk() if node.op == "fn"):
        points += [{name: Fraction(at + 3 * place) for place, name in enumerate(names)} for at in range(1, 13)]
    for point in points:
        verdict = _agree_at(gold, answer, point)
        if verdict is False:
            return False
        seen += verdict is True
    return seen >= 2


def ratio_constant(gold: Node, answer: Node) -> Fraction | Any | None:
    """c with answer = c * gold everywhere (c not 0), or None."""
    names = sorted(free_symbols(gold) | free_symbols(answer))
    first: Any = None
    for index in range(5):
        point = _point(names, index, negative=False)
        pair = _values_at(gold, answer, point)
        if pair == (0, 0):
            continue  # a point of both curves: it says nothing of the factor
        if pair is None or pair[0] == 0 or pair[1] == 0:
            return None
        with _MP, mpmath.workdps(DIGITS):
            ratio = pair[1] / pair[0]
            if first is None:
                first = ratio
            elif not _same_ratio(first, ratio):
                return None
    return first


def _same_ratio(one: Any, two: Any) -> bool:
    if isinstance(one, Fraction) and isinstance(two, Fraction):
        return one == two
    one, two = (mpmath.mpf(x.numerator) / x.denominator if isinstance(x, Fraction) else x for x in (one, two))
    return bool(abs(one - two) < abs(one) * mpmath.mpf(10) ** -40)


def _point(names: list[str], index: int, *, negative: bool) -> dict[str, Fraction]:
    """Distinct values for the symbols: small, larger, whole, then negative. None shares one, so that swaps show."""
    scale = (1, 7, 1, 1, 5)[index]
    return {
        name: (-scale if negative else scale)
        * (Fraction(_PRIMES[place % len(_PRIMES)]) if index == 2 else _POINTS[(place + index) % len(_POINTS)])
        + (0 if index == 2 else Fraction(place, 101))
        for place, name in enumerate(names)
    }


def _agree_at(gold: Node, answer: Node, point: dict[str, Fraction]) -> bool | None:
    """True or False where both sides can be computed; None where the point says nothing."""
    at_gold, at_answer = substitute(gold, point), substitute(answer, point)
    try:
        left, right = exact(at_gold), exact(at_answer)
    except UndefinedError:
        return None
    if left is not None and right is not None:
        return left == right
    with _MP, mpmath.workdps(DIGITS):
        sides = Approximator({}), Approximator({})
        try:
            values = sides[0].value(at_gold), sides[1].value(at_answer)
        except (UndefinedError, TooLargeError):
            return None
        near = _near(*values, *sides)
        if not near and any(value < 0 for value in point.values()):
            real = all(abs(mpmath.im(value)) < mpmath.mpf(10) ** -30 for value in values)
            return False if real else None
        return near


def _values_at(gold: Node, answer: Node, point: dict[str, Fraction]) -> tuple[Any, Any] | None:
    at_gold, at_answer = substitute(gold, point), substitute(answer, point)
    try:
        left, right = exact(at_gold), exact(at_answer)
        if left is not None and right is not None:
            return left, right
        with _MP, mpmath.workdps(DIGITS):
            return Approximator({}).value(at_gold), Approximator({}).value(at_answer)
    except (UndefinedError, TooLargeError):
        return None


def _renamed_constant(gold: Node, answer: Node) -> bool:
    """gold x + C, answer x + c: one symbol each that the other lacks, the gold's being C."""
    extra_gold, extra_answer = free_symbols(gold) - free_symbols(answer), free_symbols(answer) - free_symbols(gold)
    if extra_gold != {"C"} or len(extra_answer) != 1 or not re.match(r"[cCkK]", next(iter(extra_answer))):
        return False
    return same_function(gold, rename(answer, next(iter(extra_answer)), "C"))


def rename(node: Node, old: str, new: str) -> Node:
    if node.op == "sym" and node.name == old:
        return replace(node, name=new)
    return replace(node, args=tuple(rename(arg, old, new) for arg in node.args)) if node.args else node
