"""A recursive-descent reader of one scalar expression. It consumes every token or raises."""

from __future__ import annotations

import re
from dataclasses import replace
from fractions import Fraction
from functools import reduce

from reward.math.cursor import Cursor
from reward.math.lexer import FUNCTIONS, Token
from reward.math.nodes import Node, UnparsedError, fn, num, substitute, sym

MAX_TERMS, MAX_SERIES = 100, 5000  # terms of a sum that is written out; nodes of all of them
_STOPS = frozenset([*"+-)]}|=<>,;:&", "row", "le", "ge", "ne", "and", "or", "pm", "mp", "\\}"])
_DECORATIONS = frozenset(
    ["overline", "bar", "hat", "vec", "ddot", "tilde", "widehat", "overrightarrow", "underline", "dot", "mathring"]
)
_GEOMETRY = frozenset(["angle", "triangle", "measuredangle", "square", "parallel", "odot"])
_PERCENT_WORDS = re.compile(r"(?:percent|per\s+cent|pct|%)\.?", re.IGNORECASE)
_DEGREE_WORDS = re.compile(r"deg(?:ree)?s?\.?", re.IGNORECASE)
_SCALES = tuple(  # words behind a number that multiply it
    (10**zeros, re.compile(pattern, re.IGNORECASE))
    for zeros, pattern in (
        (2, r"hundreds?|百"), (3, r"thousands?|千|천"), (6, r"millions?|mio|百万"), (9, r"billions?|十亿|bn"),
        (12, r"trillions?|兆|조"), (4, r"[万萬만]"), (8, r"[亿億억]"), (5, r"lakhs?"), (7, r"crores?"),
    )
)  # fmt: skip
_NO_UNIT = re.compile(  # words behind a number that take it back, or make it a bound
    r"\b(?:at\s+(?:most|least)|not|wrong|incorrect|false|think|guess|(?:un)?sure|maybe|perhaps|probably|possibly|likely|etc)\b",
    re.IGNORECASE,
)
_CLOSERS = {"lfloor": "rfloor", "lceil": "rceil"}
_NAMES = {"arcsin": "asin", "arccos": "acos", "arctan": "atan", "arccot": "acot", "lfloor": "floor", "lceil": "ceil"}


class ExpressionReader(Cursor):
    """Reads ``tokens`` from the left; ``read_all`` also splits off a trailing unit."""

    def read_all(self) -> Node:
        """The whole of the tokens: an expression and perhaps a unit. Raises: UnparsedError."""
        node = self._sum()
        unit = self._unit()
        if self._here < len(self._tokens):
            raise UnparsedError(f"left over from {self._tokens[self._here].text!r}")
        if _NO_UNIT.search(unit):
            raise UnparsedError(f"{unit!r} is no unit")
        if _PERCENT_WORDS.fullmatch(unit):
            return Node("percent", (node,))
        if _DEGREE_WORDS.fullmatch(unit):
            return Node("degree", (node,))
        return _scaled(node, unit) if unit else node

    # -- grammar

    def _sum(self) -> Node:
        terms = [self._product()]
        while self._is("+", "-", "pm", "mp"):
            operator = self._take().text
            term = self._product()
            if operator in ("pm", "mp"):
                terms = [Node(operator, (_add(terms), term))]
            else:
                terms.append(Node("neg", (term,)) if operator == "-" else term)
        return _add(terms)

    def _product(self) -> Node:
        node = self._signed()
        while (token := self._peek()) is not None:
            if self._is("*"):
                self._take()
                node = Node("mul", (node, self._signed()))
            elif self._is("/"):
                self._take()
                node = Node("div", (node, self._signed()))
            elif self._is("pmod", "bmod", "mod"):
                node = self._modulo(node)
            elif (
                (token.text in _STOPS and token.kind != "sym" and not (token.text == "|" and not self._bars))
                or token.kind == "text"
                or (token.kind == "cmd" and token.text in ("rfloor", "rceil", "rangle", "to"))
            ):
                break
            else:
                node = self._juxtaposed(node, token)
        return node

    def _juxtaposed(self, node: Node, token: Token) -> Node:
        """A factor without an operator. A number never follows one: '1 2' and 'x2' are no products."""
        if token.kind == "num" and not (node.op == "fn" or self._after_bracket()):
            raise UnparsedError("two numbers side by side")
        if (
            self._is("frac")
            and node.op == "num"
            and node.value.denominator == 1
            and node.decimals < 0
            and self._after_number()
        ):
            part = self._atom()
            mixed = _mixed(node, part)
            return self._raised(mixed) if mixed else Node("mul", (node, self._raised(part)))
        return Node("mul", (node, self._power()))

    def _after_bracket(self) -> bool:
        return self._here > 0 and self._tokens[self._here - 1].text in (")", "]", "}", "|", "!")

    def _after_number(self) -> bool:
        return self._here > 0 and self._tokens[self._here - 1].kind == "num"

    def _modulo(self, node: Node) -> Node:
        self._take()
        return fn("mod", node, self._argument())

    def _signed(self) -> Node:
        if self._is("+"):
            self._take()
            return self._signed()
        if self._is("-"):
            self._take()
            return Node("neg", (self._signed_product(),))
        if self._is("pm", "mp"):
            operator = self._take().text
            return Node(operator, (num(0), self._signed_product()))
        return self._power()

    def _signed_product(self) -> Node:
        """What a sign applies to; a mixed number counts as one: -2 1/2 is -(2 + 1/2)."""
        node = self._signed()
        token = self._peek()
        if token is not None and self._is("frac") and node.op == "num" and self._after_number():
            return self._juxtaposed(node, token)
        return node

    def _power(self) -> Node:
        return self._raised(self._atom())

    def _raised(self, base: Node) -> Node:
        base = self._postfix(base)
        if not self._is("^"):
            return base
        self._take()
        if self._circle():
            return self._postfix(Node("degree", (base,)))
        if self._primes():
            return sym(f"{base.name}'") if base.op == "sym" else fn("prime", base)
        exponent = self._exponent()
        return self._postfix(Node("pow", (base, exponent)))

    def _exponent(self) -> Node:
        if self._is("-", "+"):
            sign = self._take().text
            inner = self._power()
            return Node("neg", (inner,)) if sign == "-" else inner
        if self._is("{"):
            base = self._argument()
        else:
            token = self._peek()
            if token is not None and token.kind == "num" and token.text.isdigit():
                base = self._atom()
            else:
                base = self._argument()
        return self._power_of(base)

    def _power_of(self, base: Node) -> Node:
        """Right-associative: 9^9^9."""
        if self._is("^"):
            self._take()
            return Node("pow", (base, self._exponent()))
        return base

    def _circle(self) -> bool:
        for shape in (("circ",), ("{", "circ", "}")):
            ahead = [self._peek(index) for index in range(len(shape))]
            if all(token is not None and token.text == text for token, text in zip(ahead, shape, strict=True)):
                self._here += len(shape)
                return True
        return False

    def _primes(self) -> bool:
        """One prime, in braces or bare."""
        start = self._here
        braced = self._is("{")
        self._here += braced
        count = 0
        while self._is("prime"):
            self._here += 1
            count += 1
        if count == 1 and (not braced or self._is("}")):
            self._here += braced
            return True
        self._here = start
        return False

    def _postfix(self, node: Node) -> Node:
        while True:
            if self._is("!"):
                node = self._factorial(node)
            elif self._is("%"):
                self._take()
                node = Node("percent", (node,))
            elif self._is("'") and node.op == "sym":
                self._take()
                node = sym(node.name + "'")
            elif self._is("circ"):
                self._take()
                node = Node("degree", (node,))
            else:
                return node

    def _factorial(self, node: Node) -> Node:
        """n! or n!!, the double factorial."""
        count = 0
        while self._is("!"):
            self._take()
            count += 1
        if count > 2:
            raise UnparsedError("more than two exclamation marks")
        return Node("fact", (node,)) if count == 1 else fn("fac2", node)

    # -- atoms

    def _atom(self) -> Node:
        token = self._peek()
        if token is None:
            raise UnparsedError("nothing where a value should stand")
        if token.kind == "num":
            self._here += 1
            return Node("num", value=token.value, decimals=token.decimals)
        if token.kind == "sym":
            self._here += 1
            return self._subscripted(token.text)
        if token.kind == "op":
            return self._bracket(token)
        if token.kind == "cmd":
            return self._command(token)
        raise UnparsedError(f"word {token.text!r}")

    def _subscripted(self, name: str) -> Node:
        if not self._is("_"):
            return sym(name + self._at_number())
        self._take()
        inner = self._raw_argument()
        return sym(f"{name}_{inner}")

    def _at_number(self) -> str:
        """``(0)`` behind a symbol: I(0) is a value of I, not I times 0."""
        ahead = [self._peek(index) for index in range(3)]
        if ahead[1] is None or ahead[1].kind != "num" or [token and token.text for token in ahead[::2]] != ["(", ")"]:
            return ""
        self._here += 3
        return f"({ahead[1].text})"

    def _raw_argument(self) -> str:
        """The source of a subscript, as a name."""
        if not self._is("{"):
            return self._take().text
        self._take()
        parts: list[str] = []
        depth = 1
        while True:
            token = self._take()
            depth += (token.text == "{") - (token.text == "}")
            if depth == 0:
                return "".join(parts)
            parts.append(token.text)

    def _bracket(self, token: Token) -> Node:
        if token.text in ("(", "[", "{"):
            self._here += 1
            saved, self._bars = self._bars, 0
            node = self._sum()
            self._bars = saved
            self._take({"(": ")", "[": "]", "{": "}"}[token.text])
            return replace(node, decimals=-1) if node.op == "num" else node
        if token.text == "|":
            self._here += 1
            self._bars += 1
            node = self._sum()
            self._bars -= 1
            self._take("|")
            return fn("abs", node)
        if token.text in ("-", "+"):
            return self._signed()
        raise UnparsedError(f"{token.text!r} where a value should stand")

    def _command(self, token: Token) -> Node:
        name = token.text
        self._here += 1
        if name in ("frac", "binom"):
            return Node("div" if name == "frac" else "binom", (self._argument(), self._argument()))
        if name == "sqrt":
            return self._root()
        if name == "cbrt":
            return Node("pow", (self._function_argument(), num(Fraction(1, 3))))
        if name in ("pi", "infty", "inf", "infinity", "oo"):
            return sym("pi") if name == "pi" else Node("infinity")
        if name in _CLOSERS:
            inner = self._sum()
            self._take(_CLOSERS[name])
            return fn(_NAMES[name], inner)
        if name in _DECORATIONS:
            inner = self._argument()
            return self._subscripted(f"{name}_{inner.name}") if inner.op == "sym" else fn(name, inner)
        if name in _GEOMETRY:
            return sym(name + self._letters())
        if name in ("sum", "prod"):
            return self._series(name)
        if name == "ldots":
            return Node("ellipsis")
        if name in FUNCTIONS:
            return self._function(name)
        raise UnparsedError(f"\\{name}")

    def _series(self, name: str) -> Node:
        """A sum or product over few whole numbers, written out. Others are no value that we compute."""
        self._take("_")
        self._take("{")
        index = self._atom()
        self._take("=")
        low = self._sum()
        self._take("}")
        self._take("^")
        high = self._exponent()
        body = self._signed_product() if name == "sum" else self._power()
        ends = [end.value for end in (low, high) if end.op == "num" and end.value.denominator == 1]
        if index.op != "sym" or len(ends) != 2 or not 0 <= ends[1] - ends[0] < MAX_TERMS:
            raise UnparsedError(f"\\{name} without small whole bounds")
        terms = [substitute(body, {index.name: Fraction(at)}) for at in range(int(ends[0]), int(ends[1]) + 1)]
        if len(terms) * sum(1 for _ in body.walk()) > MAX_SERIES:
            raise UnparsedError(f"\\{name} too large")
        return _add(terms) if name == "sum" else reduce(lambda one, two: Node("mul", (one, two)), terms)

    def _letters(self) -> str:
        """The capital letters that name an angle or a triangle."""
        letters = ""
        while (token := self._peek()) is not None and token.kind in ("sym", "text") and token.text.isupper():
            letters += token.text
            self._here += 1
            if self._is("_"):
                self._take()
                letters += f"_{self._raw_argument()}"
        return letters

    def _root(self) -> Node:
        degree: Node = num(2)
        if self._is("["):
            self._take()
            degree = self._sum()
            self._take("]")
        radicand = self._argument()
        return Node("pow", (radicand, Node("div", (num(1), degree))), name="root")

    def _function(self, name: str) -> Node:
        base: Node | None = None
        power: Node | None = None
        while self._is("_", "^"):
            if self._take().text == "_":
                base = self._argument()
            else:
                power = self._exponent()
        args = self._function_arguments()
        if name in ("log", "lg"):
            node = fn("log", *args, base) if base else fn("log", *args) if name == "log" else fn("log", *args, num(10))
        elif base is not None:
            raise UnparsedError(f"subscript of {name}")
        else:
            node = fn(_NAMES.get(name, name), *args)
        if power is None:
            return node
        if power.op == "neg" and power.args[0] == num(1) and name in ("sin", "cos", "tan", "cot", "sec", "csc"):
            return fn("a" + name, *args)
        return Node("pow", (node, power))

    def _function_arguments(self) -> tuple[Node, ...]:
        if not self._is("("):
            return (self._function_argument(),)
        self._take()
        args = [self._sum()]
        while self._is(","):
            self._take()
            args.append(self._sum())
        self._take(")")
        return tuple(args)

    def _function_argument(self) -> Node:
        """Without brackets: the factors up to an operator or the next function (sin 2x cos y)."""
        node = self._power()
        while (token := self._peek()) is not None:
            starts = token.kind in ("sym",) or token.text in ("frac", "sqrt", "pi", "binom")
            if not starts or (token.kind == "op"):
                break
            node = self._juxtaposed(node, token)
        return node

    def _argument(self) -> Node:
        r"""A LaTeX macro's argument: a braced group, or one digit or token (``\frac12``)."""
        token = self._peek()
        if token is None:
            raise UnparsedError("missing argument")
        if self._is("{"):
            return self._bracket(token)
        if token.kind == "num" and token.text.isdigit() and len(token.text) > 1:
            self._tokens[self._here] = Token("num", token.text[1:], Fraction(int(token.text[1:])))
            return num(int(token.text[0]))
        return self._atom()


def _add(terms: list[Node]) -> Node:
    return terms[0] if len(terms) == 1 else Node("add", tuple(terms))


def _scaled(node: Node, unit: str) -> Node:
    """5 million people as 5,000,000 with the unit people."""
    word, _, rest = unit.partition(" ")
    scale = next((size for size, name in _SCALES if name.fullmatch(word)), None)
    if scale is None:
        return replace(node, unit=unit)
    number = node.op == "num"
    scaled = num(node.value * scale) if number else Node("mul", (node, num(scale)))
    return _scaled(scaled, rest.removeprefix("of ")) if rest else scaled


def _mixed(whole: Node, part: Node) -> Node | None:
    """``7\\frac{3}{4}`` is 7 + 3/4; anything but plain positive whole numbers is a product."""
    if part.op != "div" or any(arg.op != "num" or arg.value.denominator != 1 for arg in part.args):
        return None
    top, bottom = part.args
    return num(whole.value + Fraction(top.value, bottom.value)) if bottom.value else None
