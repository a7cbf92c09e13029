"""Numbers out of trees: exact rationals where possible, else bounded-precision values. Nothing here can grow large."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from fractions import Fraction
from typing import Any

import mpmath

from reward.math.nodes import Node

MAX_BITS = 60_000  # of an exact number; beyond it values are compared in floating point
MAX_MAGNITUDE = 10**15  # bits of a floating-point value's exponent; beyond it nothing is claimed
MAX_FACTORIAL = 3000


class UndefinedError(Exception):
    """No finite value: a pole, 0/0, an unknown function."""


class PoleError(UndefinedError):
    """Infinite there."""


class TooLargeError(Exception):
    """A value beyond what is worth computing."""


class InexactError(Exception):
    """Not a rational number, as far as the exact evaluator sees."""


def exact(node: Node) -> Fraction | None:
    """The rational value of a tree without symbols, or None when it has none that is cheap to find.

    Raises: UndefinedError for a division by zero.
    """
    try:
        return _exact(node)
    except InexactError:
        return None


def _exact(node: Node) -> Fraction:
    rule = _EXACT.get(node.op)
    if rule is None:
        raise InexactError
    value = rule(*map(_exact, node.args)) if node.args else node.value
    if value.numerator.bit_length() + value.denominator.bit_length() > MAX_BITS:
        raise InexactError
    return value


def _exact_add(*terms: Fraction) -> Fraction:
    return sum(terms, Fraction(0))


def _exact_div(top: Fraction, bottom: Fraction) -> Fraction:
    if bottom == 0:
        raise PoleError("division by zero")
    return top / bottom


def _exact_pow(base: Fraction, exponent: Fraction) -> Fraction:
    if base == 0:
        if exponent <= 0:
            raise PoleError("0 to a power that is not positive")
        return base
    if exponent.denominator != 1:
        return _exact_root(base, exponent)
    bits = base.numerator.bit_length() + base.denominator.bit_length()
    if abs(exponent) * bits > MAX_BITS and abs(base) != 1:
        raise InexactError
    return base ** int(exponent) if abs(base) != 1 else Fraction(1 if base > 0 or exponent % 2 == 0 else -1)


def _exact_root(base: Fraction, exponent: Fraction) -> Fraction:
    """Perfect powers under a root: 27^(2/3). Of a negative base only odd roots are real."""
    degree = exponent.denominator
    if degree > 64 or base < 0:
        raise InexactError
    top, bottom = _int_root(base.numerator, degree), _int_root(base.denominator, degree)
    if top is None or bottom is None:
        raise InexactError
    return _exact_pow(Fraction(top, bottom), Fraction(exponent.numerator))


def _int_root(value: int, degree: int) -> int | None:
    if degree == 2:
        guess = math.isqrt(value)
    else:
        if value.bit_length() > 900:
            return None
        guess = round(value ** (1 / degree))
    return guess if guess**degree == value else None


def _exact_factorial(value: Fraction) -> Fraction:
    if value.denominator != 1 or value < 0 or value > MAX_FACTORIAL:
        raise InexactError
    return Fraction(math.factorial(int(value)))


def _exact_binomial(top: Fraction, bottom: Fraction) -> Fraction:
    if top.denominator != 1 or bottom.denominator != 1 or not 0 <= top <= 20_000 or bottom < 0:
        raise InexactError
    return Fraction(math.comb(int(top), int(bottom)))


_EXACT: dict[str, Callable[..., Fraction]] = {
    "num": lambda: Fraction(0),
    "add": _exact_add,
    "mul": lambda left, right: left * right,
    "div": _exact_div,
    "neg": lambda value: -value,
    "pow": _exact_pow,
    "percent": lambda value: value / 100,
    "fact": _exact_factorial,
    "binom": _exact_binomial,
}

_CONSTANTS: dict[str, Callable[[], Any]] = {
    "pi": lambda: +mpmath.mp.pi,
    "e": lambda: +mpmath.mp.e,
    "i": lambda: mpmath.mpc(0, 1),
}
CONSTANT_NAMES = frozenset(_CONSTANTS)
_FUNCTIONS: dict[str, Callable[..., Any]] = {
    "abs": abs,
    "exp": lambda value: mpmath.exp(value),
    "floor": mpmath.floor,
    "fac2": mpmath.fac2,
    "ceil": mpmath.ceil,
    "Re": mpmath.re,
    "Im": mpmath.im,
    "gcd": lambda *values: mpmath.mpf(math.gcd(*map(_integer, values))),
    "lcm": lambda *values: mpmath.mpf(math.lcm(*map(_integer, values))),
    "max": lambda *values: max(map(_real, values)),
    "min": lambda *values: min(map(_real, values)),
    "mod": lambda value, base: mpmath.mpf(_integer(value) % _integer(base)),
} | {
    name: getattr(mpmath, name)
    for name in (
        "sin cos tan cot sec csc asin acos atan acot sinh cosh tanh coth sech csch".split()  # noqa: SIM905
    )
}

_ZEROS = {"tan": mpmath.cos, "sec": mpmath.cos, "cot": mpmath.sin, "csc": mpmath.sin}  # where the first has a pole


def _uncancelled(terms: tuple[Node, ...]) -> tuple[Node, ...]:
    """Without pairs of a term and the same term negated, which cancel whatever their size."""
    kept: list[Node] = []
    for term in terms:
        opposite = term.args[0] if term.op == "neg" else Node("neg", (term,))
        if opposite in kept:
            kept.remove(opposite)
        else:
            kept.append(term)
    return tuple(kept)


def _integer(value: Any) -> int:
    real = _real(value)
    if real != mpmath.nint(real) or abs(real) > 10**15:
        raise UndefinedError("not a whole number")
    return int(real)


def _real(value: Any) -> Any:
    if isinstance(value, mpmath.mpc) and value.imag != 0:
        raise UndefinedError("not real")
    return mpmath.re(value)


class Approximator:
    """Evaluates a tree at the working precision of mpmath, with symbols from ``point``.

    ``scale`` ends up as the largest term that a sum cancelled: errors are relative to it, not to the small result.
    """

    def __init__(self, point: Mapping[str, Any]) -> None:
        self._point = point
        self.scale = mpmath.mpf(0)

    def value(self, node: Node) -> Any:
        """Raises: UndefinedError, TooLargeError."""
        try:
            result = self._value(node)
        except (ZeroDivisionError, ValueError, OverflowError, mpmath.libmp.NoConvergence) as error:
            raise (PoleError if isinstance(error, ZeroDivisionError) else UndefinedError)(str(error)) from error
        return result

    def _value(self, node: Node) -> Any:
        result = self._dispatch(node)
        if not mpmath.isfinite(result):
            raise PoleError("not finite")
        if result != 0 and abs(mpmath.mag(result)) > MAX_MAGNITUDE:
            raise TooLargeError
        return result

    def _dispatch(self, node: Node) -> Any:
        op = node.op
        if op == "num":
            return mpmath.mpf(node.value.numerator) / node.value.denominator
        if op == "sym":
            return self._symbol(node.name)
        if op == "add":
            return self._add(node)
        if op == "fn":
            return self._function(node)
        values = [self._value(arg) for arg in node.args]
        if op == "mul":
            return values[0] * values[1]
        if op == "div":
            return values[0] / values[1]
        if op == "neg":
            return -values[0]
        if op == "pow":
            return self._power(*values, real_root=node.name == "root")
        if op == "percent":
            return values[0] / 100
        if op == "degree":
            return values[0] * mpmath.mp.pi / 180
        if op == "fact":
            return self._factorial(values[0])
        if op == "binom":
            return self._binomial(*values)
        raise UndefinedError(op)

    def _symbol(self, name: str) -> Any:
        if name in self._point:
            return self._point[name]
        if name in _CONSTANTS:
            return _CONSTANTS[name]()
        raise UndefinedError(f"free symbol {name}")

    def _add(self, node: Node) -> Any:
        args = node.args
        values = [self._value(arg) for arg in args]
        largest = max(abs(value) for value in values)
        if largest > 10**30 and (kept := _uncancelled(args)) != args:
            return self._add(Node("add", kept)) if kept else mpmath.mpf(0)
        total = values[0]
        for value in values[1:]:
            total = total + value
        if abs(total) < largest / 1000:
            self.scale = max(self.scale, largest)
        return total

    def _power(self, base: Any, exponent: Any, *, real_root: bool) -> Any:
        if base == 0 and mpmath.re(exponent) <= 0:
            raise PoleError("0 to a power that is not positive")
        if base != 0:
            size = abs(exponent) * max(abs(mpmath.log(abs(base))), mpmath.mpf(1) / 1000)
            if size > MAX_MAGNITUDE:
                raise TooLargeError
        if real_root and mpmath.im(base) == 0 and base < 0:
            degree = mpmath.nint(1 / exponent)
            if abs(1 / exponent - degree) < mpmath.mpf(10) ** -10 and int(degree) % 2:
                return -mpmath.power(-base, exponent)  # the school's cube root of a negative number is real
        return mpmath.power(base, exponent)

    def _function(self, node: Node) -> Any:
        values = [self._value(arg) for arg in node.args]
        if node.name in ("log", "ln"):
            if values[0] == 0 or (len(values) == 2 and values[1] in (0, 1)):
                raise PoleError("logarithm")
            return mpmath.log(*values)
        function = _FUNCTIONS.get(node.name)
        if function is None:
            raise UndefinedError(f"function {node.name}")
        if node.name == "fac2" and abs(values[0]) > MAX_FACTORIAL:
            raise TooLargeError
        if node.name in ("exp", "sinh", "cosh") and abs(values[0]) > MAX_MAGNITUDE:
            raise TooLargeError
        if values and abs(mpmath.mag(values[0]) if values[0] != 0 else 0) > 2000:
            raise TooLargeError  # an angle whose digits before the point exceed the precision
        if node.name in ("sin", "cos") and abs(values[0]) > mpmath.mpf(10) ** -3:
            result = function(*values)  # of a zero only the rounding is left
            return result if abs(result) > abs(values[0]) * mpmath.mpf(10) ** (5 - mpmath.mp.dps) else mpmath.mpf(0)
        if node.name in _ZEROS and abs(_ZEROS[node.name](values[0])) < mpmath.mpf(10) ** (10 - mpmath.mp.dps):
            raise PoleError(node.name)
        return function(*values)

    def _factorial(self, value: Any) -> Any:
        if abs(value) > 10**6:
            raise TooLargeError
        return mpmath.factorial(value)

    def _binomial(self, top: Any, bottom: Any) -> Any:
        if abs(top) > 10**6:
            raise TooLargeError
        return mpmath.binomial(top, bottom)
