"""What surrounds expressions: lists, tuples, intervals, sets, relations, unions, matrices, cases, bases, words."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace

from reward.math.expression import ExpressionReader
from reward.math.lexer import Lexer, Token
from reward.math.nodes import SCALARS, Node, UnparsedError, num, sym

MAX_CHARS = 20_000
MAX_DETERMINANT = 4
BOUND = "bound"  # the symbol of a set in the form {x : condition}, whatever its letter
MAX_NESTING = 400
RELATIONS = frozenset(["=", "<", ">", "le", "ge", "ne", "approx", "equiv", "in", "to"])
_OPEN = frozenset(["(", "[", "{", "\\{", "langle", "lfloor", "lceil"])
_CLOSE = frozenset([")", "]", "}", "\\}", "rangle", "rfloor", "rceil"])
_PAIRS = {"(": ")]", "[": "])", "{": "}", "\\{": ["\\}"], "langle": ["rangle"], "]": "[]"}
_MATRICES = frozenset(
    [
        "matrix",
        "pmatrix",
        "bmatrix",
        "vmatrix",
        "Vmatrix",
        "Bmatrix",
        "smallmatrix",
        "psmallmatrix",
        "bsmallmatrix",
        "array",
    ]
)
_LETTER_DIGITS = re.compile(r"\\(?:text|mathrm|texttt)\s*\{\s*([0-9A-Za-z]+)\s*\}")  # digits of a number like 2B
_DIGIT_GROUPS = re.compile(r"\d{1,3}(?:,\d{3})+(?=\s*_)|\d{4}(?: \d{4})+(?=\s*_)")
_IN_BASE = re.compile(r"([0-9A-Za-z]+)\s*(?:\\text\s*\{\s*)?\(?\s*(?:in\s+)?base[\s-]*\}?\s*(\w+)\s*\)?\s*\}?")
_BASED = re.compile(
    r"\(?([0-9A-Za-z]+)\)?\s*_\s*(?:(\d)|\{\s*(?:\\(?:text|mathrm)\s*\{)?\s*(?:base\s*\}?\s*)?\(?(\w+)\)?\s*\}?\s*\})"
)
_CALLED = re.compile(r"'*|\^(?:\{-1\}|\{?(?:prime)+\}?)|_(?:\w|\{\w+\})")  # f, f', f^{-1} and f_1 of (x)
_DERIVATIVE = re.compile(r"frac\{d(?:\^\{?\d\}?)?[a-zA-Z]\}\{d[a-z](?:\^\{?\d\}?)?\}|d[a-zA-Z]/d[a-z]")  # dy/dx
_BASE_WORDS = {
    "two": 2, "three": 3, "four": 4, "five": 5, "six": 6, "seven": 7, "eight": 8, "nine": 9, "ten": 10, "eleven": 11,
    "twelve": 12, "sixteen": 16,
}  # fmt: skip


_REALS = re.compile(
    r"(?:(?:all|any|every)\s+(?:the\s+)?|the\s+)?(?:set\s+of\s+(?:all\s+)?)?real(?:s|\s+(?:numbers?|values?))"
)
_ALL_BUT = re.compile(r"(.*) (?:except(?: for)?|excluding|other than)")
_NOTHING = re.compile(r"(?:the\s+)?empty\s+set|(?:there\s+(?:is|are)\s+)?no\s+(?:real\s+)?solutions?(?:\s+exists?)?")
_HALF_LINE = re.compile(r"bbR(?:[\^_]([+-])|_(>|<|ge|le)0)")  # positive, negative reals


class NoSuchDigitError(UnparsedError):
    """A number in a base that lacks one of its digits: no answer to anything."""


def parse(text: str, *, grouped: bool = True) -> Node:
    """The tree of a cleaned answer. Raises: UnparsedError unless all of it is understood."""
    if len(text) > MAX_CHARS:
        raise UnparsedError("too long")
    if not text:
        raise UnparsedError("empty")
    if (based := _based(text)) is not None:
        return based
    return _answer(Lexer(text, grouped=grouped).tokens())


def _based(text: str) -> Node | None:
    text = _DIGIT_GROUPS.sub(lambda groups: re.sub(r"\D", "", groups[0]), _LETTER_DIGITS.sub(r"\1", text))
    text = _IN_BASE.sub(r"\1_{\2}", text) if _IN_BASE.fullmatch(text) else text
    match = _BASED.fullmatch(text)
    if match is None:
        return None
    word = match[2] or match[3]
    base = _BASE_WORDS.get(word.lower(), 0) if not word.isdigit() else int(word)
    digits_first = match[1][0].isdigit() or (len(match[1]) > 1 and base > 10)  # x_2 and a_{16} are names
    if not 2 <= base <= 36 or not digits_first:
        return None
    digits = match[1].upper().lstrip("0") or "0"
    try:
        int(digits, base)
    except ValueError:
        raise NoSuchDigitError(f"{match[1]} has digits that base {base} lacks") from None
    return Node("based", name=digits, args=(sym(str(base)),))


def _split(tokens: Sequence[Token], at: frozenset[str]) -> tuple[list[list[Token]], list[str]]:
    """Cut at operators outside every bracket; returns the parts and the operators between them."""
    parts: list[list[Token]] = [[]]
    operators: list[str] = []
    depth = 0
    for token in tokens:
        mark = token.text if token.kind in ("op", "cmd") else ""
        depth += (mark in _OPEN or mark.startswith("begin:")) - (mark in _CLOSE or mark.startswith("end:"))
        if mark in at and depth == 0:
            operators.append(mark)
            parts.append([])
        else:
            parts[-1].append(token)
    return parts, operators


_SEPARATORS = frozenset([",", ";", "and", "or"])


def _answer(tokens: list[Token]) -> Node:
    tokens = _unwrap(tokens)
    parts, operators = _split(tokens, _SEPARATORS)
    if len(parts) == 1:
        return _relation(parts[0])
    items, names = _items(parts, operators)
    if len(items) == 1:
        return _relation(items[0])
    name = "or" if "or" in names else "and" if "and" in names else ","
    return Node("list", tuple(_relation(item) for item in items), name)


def _items(parts: list[list[Token]], operators: list[str]) -> tuple[list[list[Token]], list[str]]:
    """Drop the nothing between a comma and the conjunction after it; any other gap is an error."""
    items: list[list[Token]] = []
    for index, part in enumerate(parts):
        if part:
            items.append(part)
        elif not (0 < index < len(operators) and operators[index - 1] in ",;" and operators[index] in ("and", "or")):
            raise UnparsedError("nothing between separators")
    return items, operators


def _unwrap(tokens: list[Token]) -> list[Token]:
    """Take off brackets around the whole that hold no list. Iterative: 300 of them are no recursion."""
    rounds = 0
    while (
        len(tokens) > 2
        and tokens[0].text in ("(", "{")
        and tokens[0].kind == "op"
        and _matching(tokens) == len(tokens) - 1
    ):
        inner = tokens[1:-1]
        if len(_split(inner, _SEPARATORS)[0]) > 1 or (inner[0].text.startswith("begin:") and tokens[0].text == "{"):
            return tokens
        tokens = inner
        rounds += 1
        if rounds > MAX_NESTING:
            raise UnparsedError("nested too deeply")
    return tokens


def _matching(tokens: Sequence[Token]) -> int:
    """Index of the bracket that closes the first one, or -1."""
    depth = 0
    for index, token in enumerate(tokens):
        if token.kind in ("op", "cmd"):
            depth += (token.text in _OPEN) - (token.text in _CLOSE)
            if depth == 0:
                return index
    return -1


def _relation(tokens: list[Token]) -> Node:
    parts, operators = _split(tokens, RELATIONS)
    if len(parts) == 1:
        return _set_expression(tokens)
    if operators[0] == "approx" and not parts[0]:
        return _relation(tokens[1:])
    if any(not part for part in parts):
        raise UnparsedError("a relation lacks a side")
    if operators == ["to"]:
        return _mapping(parts)
    sides = [_label(part) if index < len(parts) - 1 else _set_expression(part) for index, part in enumerate(parts)]
    return Node("rel", tuple(sides), " ".join(operators))


def _mapping(parts: list[list[Token]]) -> Node:
    return Node("rel", tuple(_set_expression(part) for part in parts), "to")


def _label(tokens: list[Token]) -> Node:
    """The left side of a relation: an expression, a name in words, or f(x)."""
    if (
        tokens
        and all(token.kind in ("text", "sym") for token in tokens)
        and any(token.kind == "text" for token in tokens)
    ):
        return Node("text", name=" ".join(token.text for token in tokens).casefold())
    shape = [token.text for token in tokens]
    if _DERIVATIVE.fullmatch("".join(shape)):
        return Node("call", name="".join(shape))
    opens = shape.index("(") if "(" in shape else 0
    named = opens > 0 and tokens[0].kind == "sym" and shape[-1] == ")" and _CALLED.fullmatch("".join(shape[1:opens]))
    inside = tokens[opens + 1 : -1]
    if named and inside and all(token.kind == "sym" or token.text == "," for token in inside):
        return Node("call", tuple(sym(token.text) for token in inside if token.text != ","), "".join(shape[:opens]))
    return _set_expression(tokens)


def _set_expression(tokens: list[Token]) -> Node:
    for mark, op in (("cup", "union"), ("setminus", "minus"), ("cap", "inter")):
        parts, _ = _split(tokens, frozenset([mark]))
        if len(parts) > 1:
            node = _set_expression(parts[0])
            for part in parts[1:]:
                node = Node(op, (node, _set_expression(part)))
            return node
    return _item(tokens)


def _item(tokens: list[Token]) -> Node:
    tokens = _unwrap(tokens)
    if not tokens:
        raise UnparsedError("empty")
    first, last = tokens[0].text, tokens[-1].text
    if (
        len(tokens) > 2
        and first in ("(", "[")
        and tokens[1].text.startswith("begin:")
        and _matching(tokens) == len(tokens) - 1
    ):
        return _item(tokens[1:-1])  # brackets around an array are its own
    if first.startswith("begin:") and tokens[0].kind == "cmd":
        return _environment(tokens)
    if (multiple := _multiple(tokens)) is not None:
        return multiple
    if tokens[0].kind == "text" and (described := _in_words(tokens)) is not None:
        return described
    if first == "emptyset" and len(tokens) == 1:
        return Node("set")
    if first == "bbR" and len(tokens) == 1:
        return Node("reals")
    if tokens[0].kind == "cmd" and first.startswith("bb") and len(tokens) == 1:
        return sym(first)
    if first == "bbR" and (
        half := _HALF_LINE.fullmatch("".join(token.text for token in tokens if token.text not in "{}"))
    ):
        return _half_line(half[1] or half[2])
    collection = _collection(tokens, first, last)
    if collection is not None:
        return collection
    parts, _ = _split(tokens, frozenset([":"]))
    if len(parts) > 1:
        return Node("ratio", tuple(ExpressionReader(part).read_all() for part in parts))
    return ExpressionReader(tokens).read_all()


def _half_line(sign: str) -> Node:
    if sign in ("+", ">", "ge"):
        return Node("tuple", (num(0), Node("infinity")), "[)" if sign == "ge" else "()")
    return Node("tuple", (Node("neg", (Node("infinity"),)), num(0)), "(]" if sign == "le" else "()")


def _in_words(tokens: list[Token]) -> Node | None:
    """All real numbers, all real numbers except 2, no solution, the empty set."""
    words = " ".join(tokens[0].text.casefold().split())
    but = _ALL_BUT.fullmatch(words)
    if but and _REALS.fullmatch(but[1]) and len(tokens) > 1:
        left_out = _item(tokens[1:])
        return Node("minus", (Node("reals"), left_out if left_out.op == "set" else Node("set", (left_out,))))
    if any(token.kind != "text" for token in tokens):
        return None
    words = " ".join(" ".join(token.text for token in tokens).casefold().split())
    return Node("reals") if _REALS.fullmatch(words) else Node("set") if _NOTHING.fullmatch(words) else None


def _collection(tokens: list[Token], first: str, last: str) -> Node | None:
    """A tuple, interval or set when one pair of brackets holds the whole."""
    if tokens[0].kind == "sym" or first not in _PAIRS or last not in _PAIRS[first] or len(tokens) < 2:
        return None
    if first != "]" and _matching(tokens) != len(tokens) - 1:
        return None
    inner = tokens[1:-1]
    if first in ("\\{", "{"):
        if not inner:
            return Node("set") if first == "\\{" else None
        return _set(inner) if first == "\\{" or len(_split(inner, _SEPARATORS)[0]) > 1 else None
    parts, operators = _split(inner, frozenset([",", ";"]))
    if len(parts) == 1:
        return None
    items, _ = _items(parts, operators)
    brackets = {"langle": "(", "]": "("}.get(first, first) + {"rangle": ")", "[": ")"}.get(last, last)
    return Node("tuple", tuple(_relation(item) for item in items), brackets)


def _set(inner: list[Token]) -> Node:
    for mark in (":", "|"):
        parts, _ = _split(inner, frozenset([mark]))
        if len(parts) == 2 and all(parts):
            return _answer(_bind(*parts))  # {x : condition} is what satisfies the condition
    parts, operators = _split(inner, frozenset([",", ";"]))
    items, _ = _items(parts, operators)
    return Node("set", tuple(_relation(item) for item in items))


def _bind(binder: list[Token], condition: list[Token]) -> list[Token]:
    """The condition with the bound symbol under the name that every bound symbol has."""
    symbol = binder[0]
    if symbol.kind != "sym" or (len(binder) > 1 and binder[1].text != "in"):
        return condition
    return [
        replace(token, text=BOUND) if token == replace(symbol, spaced=token.spaced) else token for token in condition
    ]


def _environment(tokens: list[Token]) -> Node:
    name = tokens[0].text.removeprefix("begin:")
    if tokens[-1].text != f"end:{name}":
        raise UnparsedError(f"environment {name}")
    inner = tokens[1:-1]
    if any(token.text.startswith(("begin:", "end:")) for token in inner):
        raise UnparsedError("nested environments")
    lines = [line for line in _split(inner, frozenset(["row"]))[0] if line]
    if name == "cases":
        rows = [[part for part in _split(line, frozenset(["&", ","]))[0] if part] for line in lines]
        return Node("cases", tuple(Node("row", tuple(map(_condition, row))) for row in rows))
    if name not in _MATRICES:
        raise UnparsedError(f"environment {name}")
    cells = [_split(line, frozenset(["&"]))[0] for line in lines]
    entries = tuple(Node("row", tuple(map(_item, row))) for row in cells)
    return _determinant(entries) if name == "vmatrix" else Node("matrix", entries)


def _determinant(rows: Sequence[Node]) -> Node:
    """A small one as the sum of its products, which has a value; else a matrix that only its like can equal."""
    size = len(rows)
    entries = [arg for row in rows for arg in row.args]
    if not 0 < size <= MAX_DETERMINANT or len(entries) != size * size or any(arg.op not in SCALARS for arg in entries):
        return Node("matrix", tuple(rows), "det")
    if size == 1:
        return entries[0]
    terms = []
    for column, factor in enumerate(rows[0].args):
        rest = [Node("row", row.args[:column] + row.args[column + 1 :]) for row in rows[1:]]
        term = Node("mul", (factor, _determinant(rest)))
        terms.append(Node("neg", (term,)) if column % 2 else term)
    return Node("add", tuple(terms))


def _multiple(tokens: list[Token]) -> Node | None:
    """A number before a matrix, multiplied into it; None for anything else."""
    start = next((index for index, token in enumerate(tokens) if token.text.startswith("begin:")), 0)
    if start == 0 or not tokens[-1].text.startswith("end:"):
        return None
    before = tokens[:start]
    if before[-1].text == "*":
        before = before[:-1]
    factor = num(-1) if [token.text for token in before] == ["-"] else ExpressionReader(before).read_all()
    matrix = _environment(tokens[start:])
    if matrix.op != "matrix" or matrix.name:
        return None
    rows = (Node("row", tuple(Node("mul", (factor, cell)) for cell in row.args)) for row in matrix.args)
    return Node("matrix", tuple(rows))


def _condition(tokens: list[Token]) -> Node:
    """A cell of cases: the words if, when, for before a condition say nothing."""
    while (
        tokens and tokens[0].kind == "text" and tokens[0].text.casefold() in ("if", "when", "for", "otherwise", "where")
    ):
        if len(tokens) == 1:
            return Node("text", name=tokens[0].text.casefold())
        tokens = tokens[1:]
    return _relation(tokens)
