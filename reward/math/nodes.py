"""The parsed form of an answer: one small immutable tree, no evaluation."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from fractions import Fraction


class UnparsedError(Exception):
    """The text is not wholly an expression we read. A part of it never stands for the whole."""


@dataclass(frozen=True, slots=True)
class Node:
    """``op`` says what it is; the other fields are used as the op needs.

    Scalars: num, sym, add, mul, div, neg, pow, fn, fact, binom, pm, mp, percent, degree, ellipsis, infinity.
    Collections: tuple (``name`` holds its two brackets), set, list, rel (``name`` holds its operators), union, inter,
    minus, matrix (rows are tuples), cases, reals. Others: text, based (digits in a base), ratio.
    """

    op: str
    args: tuple[Node, ...] = ()
    name: str = ""
    value: Fraction = Fraction(0)
    decimals: int = -1  # of a number written with a decimal point; -1 for an exact one
    unit: str = ""

    def walk(self) -> Iterator[Node]:
        yield self
        for arg in self.args:
            yield from arg.walk()

    def has(self, *ops: str) -> bool:
        return any(node.op in ops for node in self.walk())

    def symbols(self) -> frozenset[str]:
        return frozenset(node.name for node in self.walk() if node.op == "sym")


def num(value: int | Fraction) -> Node:
    return Node("num", value=Fraction(value))


def sym(name: str) -> Node:
    return Node("sym", name=name)


def fn(name: str, *args: Node) -> Node:
    return Node("fn", args, name)


def substitute(node: Node, point: dict[str, Fraction]) -> Node:
    if node.op == "sym" and node.name in point:
        return num(point[node.name])
    return replace(node, args=tuple(substitute(arg, point) for arg in node.args)) if node.args else node


SCALARS = frozenset(
    "num sym add mul div neg pow fn fact binom pm mp percent degree ellipsis infinity".split()  # noqa: SIM905
)
