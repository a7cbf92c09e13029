"""Sets of real numbers as sorted pieces: intervals, points, unions, differences, linear inequalities."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import mpmath

from reward.math.nodes import Node, substitute
from reward.math.scalar import _MP, DIGITS, free_symbols, infinite_sign
from reward.math.value import Approximator, TooLargeError, UndefinedError, exact

ORDERS = frozenset(["<", ">", "le", "ge"])
_FLIP = {"<": ">", ">": "<", "le": "ge", "ge": "le"}
MAX_PIECES = 64


@dataclass(frozen=True, slots=True)
class Piece:
    """From low to high; ``closed`` says for each end whether it belongs. A point has both ends equal and closed."""

    low: Any
    high: Any
    closed: tuple[bool, bool]


INFINITY = mpmath.inf
REALS = (Piece(-INFINITY, INFINITY, (False, False)),)
Pieces = tuple[Piece, ...]


def as_set(node: Node) -> Pieces | None:
    """The set of reals that a tree stands for, or None when it is not one we can hold."""
    op = node.op
    if op == "reals":
        return REALS
    if op == "tuple" and len(node.args) == 2:
        return _interval(node)
    if op == "set":
        points = [_end(arg) for arg in node.args[:MAX_PIECES]]
        if any(point is None for point in points) or len(node.args) > MAX_PIECES:
            return None
        return _tidy(Piece(point, point, (True, True)) for point in points)
    if op == "rel":
        return _solutions(node)
    if op == "list":
        return _listed(node)
    if op in ("union", "inter", "minus"):
        left, right = as_set(node.args[0]), as_set(node.args[1])
        if left is None or right is None:
            return None
        return _combine(op, left, right)
    return None


def same_set(left: Pieces, right: Pieces) -> bool:
    return len(left) == len(right) and all(
        _same(one.low, two.low) and _same(one.high, two.high) and one.closed == two.closed
        for one, two in zip(left, right, strict=True)
    )


def _combine(op: str, left: Pieces, right: Pieces) -> Pieces:
    if op == "union":
        return _tidy([*left, *right])
    return _intersect(left, right if op == "inter" else _complement(right))


def _interval(node: Node) -> Pieces | None:
    low, high = _end(node.args[0]), _end(node.args[1])
    if low is None or high is None or not low <= high:
        return None
    closed = node.name[0] == "[", node.name[1] == "]"
    if any(shut and abs(end) == INFINITY for shut, end in zip(closed, (low, high), strict=True)):
        return None  # infinity belongs to no set of reals
    return _tidy([Piece(low, high, closed)])


def _end(node: Node) -> Any:
    """A real end point, or None."""
    if sign := infinite_sign(node):
        return sign * INFINITY
    if free_symbols(node):
        return None
    try:
        value = exact(node)
        with _MP, mpmath.workdps(DIGITS):
            number = (
                mpmath.mpf(value.numerator) / value.denominator if value is not None else Approximator({}).value(node)
            )
    except (UndefinedError, TooLargeError):
        return None
    return number if isinstance(number, mpmath.mpf) else None


def _same(left: Any, right: Any) -> bool:
    if left == right:
        return True
    if abs(left) == INFINITY or abs(right) == INFINITY:
        return False
    with _MP, mpmath.workdps(DIGITS):
        return bool(abs(left - right) <= mpmath.mpf(10) ** (20 - DIGITS) * max(abs(left), abs(right)))


def _tidy(pieces: Iterable[Piece]) -> Pieces:
    """Sorted, without empty pieces, touching ones joined."""
    kept = sorted(
        (piece for piece in pieces if piece.low < piece.high or (piece.low == piece.high and all(piece.closed))),
        key=lambda piece: (piece.low, not piece.closed[0]),
    )
    out: list[Piece] = []
    for piece in kept:
        if out and (piece.low < out[-1].high or (piece.low == out[-1].high and (piece.closed[0] or out[-1].closed[1]))):
            last = out[-1]
            if piece.high > last.high:
                out[-1] = Piece(last.low, piece.high, (last.closed[0], piece.closed[1]))
            elif piece.high == last.high:
                out[-1] = Piece(last.low, last.high, (last.closed[0], last.closed[1] or piece.closed[1]))
        else:
            out.append(piece)
    return tuple(out)


def _complement(pieces: Pieces) -> Pieces:
    out: list[Piece] = []
    low, closed = -INFINITY, False
    for piece in pieces:
        out.append(Piece(low, piece.low, (closed, not piece.closed[0] and piece.low != -INFINITY)))
        low, closed = piece.high, not piece.closed[1] and piece.high != INFINITY
    out.append(Piece(low, INFINITY, (closed, False)))
    return _tidy(piece for piece in out if abs(piece.low) != INFINITY or piece.low != piece.high)


def _intersect(left: Pieces, right: Pieces) -> Pieces:
    out: list[Piece] = []
    for one in left:
        for two in right:
            low, high = max(one.low, two.low), min(one.high, two.high)
            at_low = all(piece.closed[0] for piece in (one, two) if piece.low == low)
            at_high = all(piece.closed[1] for piece in (one, two) if piece.high == high)
            out.append(Piece(low, high, (at_low, at_high)))
    return _tidy(out)


def _listed(node: Node) -> Pieces | None:
    """Inequalities joined by "or" are a union, by "and" or a comma an intersection."""
    if len(node.args) > MAX_PIECES or not all(arg.op == "rel" for arg in node.args):
        return None
    sets = [as_set(arg) for arg in node.args]
    if len({free_symbols(arg) for arg in node.args}) != 1:
        return None
    result: Pieces | None = None
    for pieces in sets:
        if pieces is None:
            return None
        result = pieces if result is None else _combine("union" if node.name == "or" else "inter", result, pieces)
    return result


def _solutions(node: Node) -> Pieces | None:
    """Solutions of a chain of comparisons that are linear in one symbol; ``x in S`` and ``x != a`` too."""
    operators = node.name.split()
    if operators == ["in"]:
        return as_set(node.args[1])
    symbols = free_symbols(node)
    if len(symbols) != 1 or not all(operator in ORDERS or operator == "ne" for operator in operators):
        return None
    result: Pieces = REALS
    for left, operator, right in zip(node.args, operators, node.args[1:], strict=False):
        piece = _half_line(left, operator, right, next(iter(symbols)))
        if piece is None:
            return None
        result = _intersect(result, piece)
    return result


def _half_line(left: Node, operator: str, right: Node, symbol: str) -> Pieces | None:
    for side, other, sign in ((left, right, operator), (right, left, _FLIP.get(operator, operator))):
        infinite = infinite_sign(other)
        if infinite and side.op == "sym":  # -infinity < x says nothing
            return REALS if (infinite < 0) == (sign in (">", "ge")) else ()
    if left.op == "fn" and left.name == "abs" and not free_symbols(right) and operator != "ne":
        return _distance(left.args[0], operator, right, symbol)
    if right.op == "fn" and right.name == "abs" and not free_symbols(left) and operator != "ne":
        return _distance(right.args[0], _FLIP[operator], left, symbol)
    difference = Node("add", (left, Node("neg", (right,))))
    values = []
    for at in (0, 1, 2, 5):
        value = _end(substitute(difference, {symbol: Fraction(at)}))
        if value is None:
            return None
        values.append(value)
    with _MP, mpmath.workdps(DIGITS):
        slope = values[1] - values[0]
        if slope == 0 or not (_same(values[0] + 2 * slope, values[2]) and _same(values[0] + 5 * slope, values[3])):
            return None
        root = -values[0] / slope
    if operator == "ne":
        return _complement((Piece(root, root, (True, True)),))
    upward = (slope > 0) == (operator in (">", "ge"))
    closed = operator in ("le", "ge")
    return (Piece(root, INFINITY, (closed, False)),) if upward else (Piece(-INFINITY, root, (False, closed)),)


def _distance(inner: Node, operator: str, bound: Node, symbol: str) -> Pieces | None:
    """|inner| < bound lies between -bound and bound, |inner| > bound outside."""
    above = _half_line(inner, operator, bound, symbol)
    below = _half_line(inner, _FLIP[operator], Node("neg", (bound,)), symbol)
    if above is None or below is None or inner.op == "fn":
        return None
    return _combine("inter" if operator in ("<", "le") else "union", above, below)
