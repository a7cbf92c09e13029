"""Tokens of a cleaned formula. Words are words, never products of their letters."""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction

from reward.math.nodes import UnparsedError
from reward.text import closing_brace

MAX_TOKENS = 8000
MAX_DIGITS = 4000  # of a number; Python itself refuses to print more than 4300

FUNCTIONS = frozenset(
    [
        "sin",
        "cos",
        "tan",
        "cot",
        "sec",
        "csc",
        "arcsin",
        "arccos",
        "arctan",
        "arccot",
        "sinh",
        "cosh",
        "tanh",
        "coth",
        "sech",
        "csch",
        "asin",
        "acos",
        "atan",
        "arsinh",
        "arcosh",
        "artanh",
        "ln",
        "log",
        "lg",
        "exp",
        "sqrt",
        "cbrt",
        "abs",
        "gcd",
        "lcm",
        "max",
        "min",
        "floor",
        "ceil",
        "det",
        "Re",
        "Im",
        "arg",
        "deg",
        "dim",
        "operatorname",
        "sgn",
    ]
)
_UNITS_TOO = frozenset(["min", "sec", "deg"])  # behind a value, with nothing after them
CONSTANTS = {"pi": "pi", "infty": "infinity", "inf": "infinity", "infinity": "infinity", "oo": "infinity"}
GREEK = frozenset(
    [
        "alpha",
        "beta",
        "gamma",
        "delta",
        "epsilon",
        "varepsilon",
        "zeta",
        "eta",
        "theta",
        "vartheta",
        "iota",
        "kappa",
        "lambda",
        "mu",
        "nu",
        "xi",
        "rho",
        "sigma",
        "tau",
        "upsilon",
        "phi",
        "varphi",
        "chi",
        "psi",
        "omega",
        "Gamma",
        "Delta",
        "Theta",
        "Lambda",
        "Xi",
        "Pi",
        "Sigma",
        "Phi",
        "Psi",
        "Omega",
        "ell",
        "hbar",
        "Upsilon",
        "aleph",
        "partial",
        "nabla",
    ]
)
_TEXT_MACROS = frozenset(
    ["text", "mbox", "textrm", "textit", "textbf", "textsf", "mathrm", "hbox", "texttt", "textnormal", "operatorname"]
)
_RENAMED = {
    "leq": "le", "geq": "ge", "leqslant": "le", "geqslant": "ge", "lt": "<", "gt": ">", "neq": "ne", "dfrac": "frac",
    "nicefrac": "frac",
    "tfrac": "frac", "cfrac": "frac", "sfrac": "frac", "dbinom": "binom", "tbinom": "binom", "varnothing": "emptyset",
    "lbrace": "\\{", "rbrace": "\\}", "lbrack": "[", "rbrack": "]", "dots": "ldots", "cdots": "ldots", "vert": "|",
    "mid": "|", "lvert": "|", "rvert": "|", "ast": "*", "times": "*", "cdot": "*", "div": "/", "colon": ":",
    "land": "and", "wedge": "and", "lor": "or", "vee": "or", "backslash": "setminus", "rightarrow": "to",
    "simeq": "approx", "cong": "approx", "degree": "circ", "lparen": "(", "rparen": ")", "dotsc": "ldots",
    "varepsilon": "epsilon", "vartheta": "theta", "varphi": "phi", "Rightarrow": "to", "iff": "to", "implies": "to",
}  # fmt: skip
_NUMBER = re.compile(r"\d+\.\d+|\d+\.(?!\d)|\.\d+|\d+")
_SCIENTIFIC = re.compile(r"(\d+(?:\.\d+)?|\.\d+)[eE]([+-]?\d{1,9})(?![\d.a-zA-Z])")
_REPEATING = re.compile(r"(\d*)\.(\d*)\\(?:overline|bar|dot)\s*\{?\s*(\d+)\s*\}?")
_GROUPED = re.compile(r"\d{1,3}(?:,\d{3})+(?![\d])")
_UNIT = re.compile(r"[A-Za-z°]+(?:\^?-?\d)?(?:(?:\s*[/·*]\s*|\s+)[A-Za-z]+(?:\^?-?\d)?)*")
_COUNTED = re.compile(r"\d[\d.,]*%?\s*(?:\s[A-Za-z]|[^\W\d_a-zA-Z])(?:[^\W\d_]| )*")
_MIXED = re.compile(r"(\d+)\s+(\d+)\s*/\s*(\d+)(?![\d.])")


@dataclass(frozen=True, slots=True)
class Token:
    """kind: num, cmd (LaTeX command or function), sym, text, op. ``spaced``: blanks stood before it."""

    kind: str
    text: str
    value: Fraction = Fraction(0)
    decimals: int = -1
    spaced: bool = False


class Lexer:
    """Splits one formula. ``grouped``: whether 1,234 outside brackets is one number."""

    def __init__(self, text: str, *, grouped: bool) -> None:
        self._text, self._grouped = text, grouped
        self._here = self._depth = 0
        self._tokens: list[Token] = []

    def tokens(self) -> list[Token]:
        while self._here < len(self._text):
            if len(self._tokens) > MAX_TOKENS:
                raise UnparsedError("too long")
            self._step()
        return self._tokens

    def _step(self) -> None:
        letter = self._text[self._here]
        if letter.isspace():
            self._here += 1
        elif letter == "\\":
            self._command()
        elif letter.isdigit() or (letter == "." and self._text[self._here + 1 : self._here + 2].isdigit()):
            self._number()
        elif letter.isalpha():
            self._word()
        else:
            self._operator(letter)

    def _add(self, kind: str, text: str, value: Fraction = Fraction(0), decimals: int = -1) -> None:
        spaced = self._here > 0 and self._text[self._here - 1].isspace()
        self._tokens.append(Token(kind, text, value, decimals, spaced))

    def _operator(self, letter: str) -> None:
        two = self._text[self._here : self._here + 2]
        if two in ("**", "<=", ">=", "!=", "=="):
            self._add("op", {"**": "^", "<=": "le", ">=": "ge", "!=": "ne", "==": "="}[two])
            self._here += 2
            return
        if letter not in "+-*/^_()[]{}|=<>,;:!%'&":
            raise UnparsedError(f"character {letter!r}")
        self._depth += (letter in "([") - (letter in ")]")
        self._add("op", letter)
        self._here += 1

    def _number(self) -> None:
        rest = self._text[self._here : self._here + MAX_DIGITS + 1]
        if re.match(rf"[\d.,]{{{MAX_DIGITS}}}", rest):
            raise UnparsedError("number too long")
        if match := _REPEATING.match(rest):
            whole, fixed, cycle = match[1] or "0", match[2], match[3]
            scale, nines = 10 ** len(fixed), 10 ** len(cycle) - 1
            value = Fraction(int(whole + fixed), scale) + Fraction(int(cycle), scale * nines)
            self._add("num", match[0], value)
        elif match := _SCIENTIFIC.match(rest):
            power = int(match[2])
            if abs(power) > 5000:
                raise UnparsedError("exponent too large")
            self._add("num", match[0], Fraction(match[1]) * Fraction(10) ** power)
        elif (match := _MIXED.match(rest)) and int(match[3]):
            self._add("num", match[0], int(match[1]) + Fraction(int(match[2]), int(match[3])))
        elif self._grouped and self._depth <= 0 and (match := _GROUPED.match(rest)):
            digits = match[0].replace(",", "")
            tail = re.compile(r"\.\d+").match(rest, match.end())
            decimal = tail[0] if tail else ""
            self._add("num", digits, Fraction(digits + decimal), len(decimal) - 1 if decimal else -1)
            self._here += len(decimal)
        else:
            match = _NUMBER.match(rest)
            assert match
            if not self._grouped and re.match(r"0\d", match[0]):
                raise UnparsedError("12,000 is no list of 12 and 000")
            self._add("num", match[0], Fraction(match[0].rstrip(".")), _decimals(match[0]))
        self._here += match.end()

    def _word(self) -> None:
        start = self._here
        while self._here < len(self._text) and self._text[self._here].isalpha():
            self._here += 1
        word, self._here = self._text[start : self._here], start
        if word in _UNITS_TOO and not self._text[start + len(word) :].strip() and self._tokens and self._after_value():
            self._add("text", word)
            self._here += len(word)
            return
        parts = _split_word(word)
        if parts == [("text", word)] and self._is_product(word, start):
            parts = [("sym", letter) for letter in word]
        for kind, part in parts:
            self._add(kind, part)
            self._here += len(part)

    def _is_product(self, word: str, start: int) -> bool:
        """Letters that spell a word only by chance: e^{at}, \\cos(at)."""
        before, after = self._text[max(0, start - 40) : start], self._text[start + len(word) :]
        if not word.isascii() or len(word) > 4 or not re.match(r"\s*[-+*/^})]", after):
            return False
        glued = len(word) == 2 and re.search(r"[-+*/(]\s*$", before) and word.casefold() in _WORDS_BY_CHANCE
        return bool(glued or re.search(r"\^\s*\{[^{}]*$", before))

    def _command(self) -> None:
        match = re.compile(r"\\([a-zA-Z]+)\*?|\\(.)").match(self._text, self._here)
        if match is None:
            raise UnparsedError("stray backslash")
        name = match[1] or match[2]
        if name in _TEXT_MACROS and self._text[match.end() :].lstrip()[:1] == "{":
            self._text_macro(match.end())
            return
        if name in ("begin", "end"):
            self._environment(name, match.end())
            return
        if name in ("mathbb", "mathds"):
            inner = re.compile(r"\s*\{?\s*([A-Z])\s*\}?").match(self._text, match.end())
            if not inner:
                raise UnparsedError(r"\mathbb")
            self._add("cmd", "bb" + inner[1])
            self._here = inner.end()
            return
        name = _RENAMED.get(name, name)
        self._depth += (name in ("\\{", "{", "langle")) - (name in ("\\}", "}", "rangle"))
        if name in ("{", "}"):
            self._add("op", "\\" + name)
        elif name in GREEK:
            self._add("sym", name)
        elif len(name) == 1 and not name.isalpha():
            self._add("op", name if name != "\\" else "row")
        elif name in ("le", "ge", "ne", "and", "or", "\\{", "\\}"):
            self._add("op", name)
        else:
            self._add("cmd", name)
        self._here = match.end()

    def _text_macro(self, start: int) -> None:
        start = self._text.index("{", start)
        end = closing_brace(self._text, start)
        if end is None:
            raise UnparsedError("open brace")
        content = re.sub(r"(?<=[a-zA-Z])\.", "", self._text[start + 1 : end - 1].strip())  # p.m., sq. ft.
        unit = content in _UNITS_TOO and not re.match(r"\s*[\w\\({]", self._text[end:])
        if unit and self._tokens and self._after_value():
            self._add("text", content)
        elif content in FUNCTIONS or content in CONSTANTS:
            self._add("cmd", content)
        elif content.casefold() in ("and", "or"):
            self._add("op", content.casefold())
        elif _UNIT.fullmatch(content) and self._tokens and self._after_value():
            self._add("text", content)
        elif re.fullmatch(r"[A-Za-z]", content):
            self._add("sym", content)
        elif _COUNTED.fullmatch(content):  # \text{8 apples}
            self._tokens.extend(Lexer(content, grouped=self._grouped).tokens())
        elif re.search(r"[A-Za-z]{2}|[^\W\d_a-zA-Z]", content) or re.fullmatch(r"[A-Za-z%]", content):
            self._add("text", content)
        else:  # \text{13}
            self._tokens.extend(Lexer(content, grouped=self._grouped).tokens())
        self._here = end

    def _after_value(self) -> bool:
        return self._tokens[-1].kind in ("num", "text") or self._tokens[-1].text in (")", "}", "^", "circ")

    def _environment(self, name: str, start: int) -> None:
        match = re.compile(r"\s*\{([a-zA-Z]+)\*?\}(?:\s*\{[lcr|]*\})?").match(self._text, start)
        if match is None:
            raise UnparsedError("environment")
        self._depth += 1 if name == "begin" else -1
        self._add("cmd", f"{name}:{match[1]}")
        self._here = match.end()


def _decimals(text: str) -> int:
    return len(text.partition(".")[2]) if "." in text.rstrip(".") else -1


def _split_word(word: str) -> list[tuple[str, str]]:
    """A run of letters: a function, a constant, one or two symbols, a conjunction, or a word."""
    if word in FUNCTIONS:
        return [("cmd", word)]
    if word.casefold() in ("and", "or"):
        return [("op", word.casefold())]
    if word in CONSTANTS:
        return [("cmd", word)]
    if word in GREEK and len(word) > 2:
        return [("sym", word)]
    if len(word) == 1:
        return [("sym", word)] if word.isascii() else [("text", word)]
    for name in sorted(FUNCTIONS | CONSTANTS.keys(), key=len, reverse=True):
        rest = word[len(name) :]
        if len(name) > 1 and word.startswith(name) and len(rest) <= 2 and name not in ("in", "oo", "inf", "Re", "Im"):
            return [("cmd", name), *_split_word(rest)] if rest else [("cmd", name)]
    if len(word) == 2 and word.isascii() and word.casefold() not in _SHORT_WORDS:
        return [("sym", word[0]), ("sym", word[1])]
    return [("text", word)]


_WORDS_BY_CHANCE = frozenset(["am", "an", "as", "at", "be", "by", "do", "is", "it", "me", "my", "so", "us"])
_SHORT_WORDS = frozenset(
    [
        "no",
        "on",
        "is",
        "it",
        "in",
        "of",
        "or",
        "am",
        "my",
        "so",
        "at",
        "as",
        "by",
        "do",
        "go",
        "he",
        "me",
        "we",
        "up",
        "us",
        "an",
        "be",
        "if",
        "to",
        "ok",
        "cm",
        "km",
        "mm",
        "kg",
        "mg",
        "ml",
        "ft",
        "pm",
        "hz",
        "mi",
        "oz",
        "lb",
        "yd",
        "kj",
        "mj",
        "kw",
        "gb",
        "mb",
        "nm",
        "kn",
        "pa",
        "hr",
    ]
)
