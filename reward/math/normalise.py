"""From the many ways to write a formula (Unicode, ASCII, LaTeX dressing) to one. Pure text, no meaning."""

from __future__ import annotations

import re
from functools import lru_cache

from reward.text import closing_brace, visible

MAX_CACHED = 200  # characters of a formula whose spelling is remembered
_SUPERSCRIPTS = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻⁽⁾ⁿⁱˣʸᵏᵐ", "0123456789+-()nixykm")
_SUBSCRIPTS = str.maketrans("₀₁₂₃₄₅₆₇₈₉₊₋₍₎ₙₓ", "0123456789+-()nx")
_VULGAR = {
    "½": "1/2", "⅓": "1/3", "⅔": "2/3", "¼": "1/4", "¾": "3/4", "⅕": "1/5", "⅖": "2/5", "⅗": "3/5", "⅘": "4/5",
    "⅙": "1/6", "⅚": "5/6", "⅛": "1/8", "⅜": "3/8", "⅝": "5/8", "⅞": "7/8", "⅐": "1/7", "⅑": "1/9", "⅒": "1/10",
}  # fmt: skip
_SIGNS = {
    "−": "-", "–": "-", "—": "-", "‐": "-", "‑": "-", "×": r" \times ", "·": r" \cdot ", "⋅": r" \cdot ",
    "∙": r" \cdot ", "•": r" \cdot ", "÷": r" \div ", "∕": "/", "⁄": "/", "≤": r" \le ", "≥": r" \ge ",
    "⩽": r" \le ", "⩾": r" \ge ", "≠": r" \ne ", "∞": r" \infty ", "°": r"^\circ ", "º": r"^\circ ",
    "∪": r" \cup ", "∩": r" \cap ", "∅": r" \emptyset ", "⌀": r" \emptyset ", "∈": r" \in ", "ℝ": r" \mathbb{R} ",
    "ℤ": r" \mathbb{Z} ", "ℕ": r" \mathbb{N} ", "ℚ": r" \mathbb{Q} ", "ℂ": r" \mathbb{C} ", "±": r" \pm ",
    "∓": r" \mp ", "≈": r" \approx ", "≅": r" \approx ", "√": r" \sqrt ", "∛": r" \cbrt ", "…": r" \ldots ",
    "→": r" \to ", "∖": r" \setminus ", "⌊": r" \lfloor ", "⌋": r" \rfloor ", "⌈": r" \lceil ", "⌉": r" \rceil ",
    "⟨": r" \langle ", "⟩": r" \rangle ", "∧": r" \wedge ", "∨": r" \vee ", "≡": r" \equiv ", "¬": r" \neg ",
    "ℓ": "l", "€": r" \text{ euros}", "£": r" \text{ gbp}", "¥": r" \text{ yen}",
    "✅": " ", "✓": " ", "✔": " ", "☑": " ", "🎉": " ", "👍": " ",
    "。": ".", "、": ",", "；": ";", "，": ",", "（": "(", "）": ")", "％": "%", "：": ":",
}  # fmt: skip
_GREEK = dict(
    zip(
        "αβγδεζηθικλμνξπρστυφχψωΓΔΘΛΞΠΣΦΨΩϕϵ",
        [
            "alpha",
            "beta",
            "gamma",
            "delta",
            "epsilon",
            "zeta",
            "eta",
            "theta",
            "iota",
            "kappa",
            "lambda",
            "mu",
            "nu",
            "xi",
            "pi",
            "rho",
            "sigma",
            "tau",
            "upsilon",
            "phi",
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
            "phi",
            "epsilon",
        ],
        strict=True,
    )
)
_SIGNS |= {letter: rf" \{name} " for letter, name in _GREEK.items()}
_SIGN = re.compile("|".join(map(re.escape, _SIGNS)))
_SUP_RUN = re.compile("[⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻⁽⁾ⁿⁱˣʸᵏᵐ]+")
_SUB_RUN = re.compile("[₀₁₂₃₄₅₆₇₈₉₊₋₍₎ₙₓ]+")
_VULGAR_RUN = re.compile(f"(\\d?)\\s*([{''.join(_VULGAR)}])")
_THIN = "\u00a0\u2009\u202f\u2008\u2007"
# Only groups of three digits are groups: 12\,345 is a number, 1\,23 is not.
_THIN_GROUP = re.compile(
    rf"(?<![\d.])(?<!(?<!\\),)\d{{1,3}}(?:(?:\\[,;! ]|\\thinspace\s*|~|[{_THIN}]|\{{,\}}|,\\!|'|\\')\d{{3}})+(?![\d])"
)
_SPACED_GROUPS = re.compile(r"-?\s?\d{1,3}(?: \d{3})+(?:\.\d+)?")  # only as the whole answer: 1 234 567
_NOISE = re.compile(
    r"(?<!\\)\\(?:[,;!:>]|\s|(?:displaystyle|textstyle|limits|left|right|[bB]igg?[lr]?|quad|qquad|thinspace|nolimits|hfill"
    r"|enspace|middle|allowbreak|nonumber|notag|strut|tiny|small|normalsize|[lL]arge|LARGE|[hH]uge|checkmark)(?![a-zA-Z]))|~|\\(?:hspace|vspace|label|tag|phantom)\*?\{[^{}]*\}"
)
_ROW_SPACE = re.compile(r"(?<=\\\\)\s*\[\s*-?[\d.]+\s*(?:pt|ex|em|mm|cm|in)\s*\]")
_BLANKS = re.compile(r"[ \t\r\n]{2,}")
_DOLLARS = re.compile(r"\\\$\s*(\d[\d,]*(?:\.\d+)?)(?![\d.,]*\s*[\\\w{^/*(])")  # \$5 is 5 dollars, not 5 cents
_TEMPERATURE = re.compile(  # 98.6^\circ F is no product with a symbol F
    r"(?<=[\d\s}])\^?\s*\{?\s*\\circ\s*\}?\s*(?:\\(?:text|mathrm)\s*\{\s*([FC])\s*\}|([FC])(?![\w{]))"
)
_BRACED_SIGN = re.compile(r"(?<![_^])\{([:=<>])\}")  # 3{:}30
_CYCLE = re.compile(r"(\d*\.\d*?)(?:(\d)\2{2,}|(\d{2,}?)\3+)(?:\.{3}|…|\\[lc]?dots(?![a-zA-Z]))")  # 0.333... is a third
_CURRENCY = re.compile(r"([€£¥])\s*(\d[\d,]*(?:\.\d+)?)")
_ALIGNED = re.compile(
    r"\s*\\begin\{(aligned|align|gathered|gather|split|equation)\*?\}(.*)\\end\{\1\*?\}\s*", re.DOTALL
)
_DRESSING = re.compile(r"\\(?:mathbf|mathit|boldsymbol|bm|mathsf|mathtt|mathcal|pmb|emph|underline|mathord)\s*(?=\{)")
_STYLE_SWITCH = re.compile(r"\\(?:bf|it|rm|sf|tt|bfseries|itshape)(?![a-zA-Z])")
_COLOUR = re.compile(r"\\(?:text)?color\s*\{[^{}]*\}")
_LABEL = re.compile(
    r"^(?:\\(?:text|textbf|mathrm)\s*\{)?\s*(?:the\s+)?(?:final\s+)?(?:answer|ans|result|solution)\s*\}?(?:\s+is\b\s*[:=]?|\s*[:=])\s*\}?\s*",
    re.I,
)
_ORDINAL = re.compile(
    r"(?<=\d)\s*\^?\s*\{?\s*\\?(?:text|mathrm|textsuperscript)?\s*\{?\s*(?:st|nd|rd|th)\b\s*\}?\s*\}?"
)


_COMBINATIONS = re.compile(  # C_{10}^{4} and {}_{10}C_{4}, of numbers only: C_n^k may be a constant's power
    r"(?<![A-Za-z\\])(?:\\mathrm\{C\}|C)_\{?(\d+)\}?\^\{?(\d+)\}?|(?:\{\})?[_^]\{?(\d+)\}?\s*(?:\\mathrm\{C\}|C)_\{?(\d+)\}?"
)
_PARAMETER = re.compile(  # k\pi \text{ where } k \in \mathbb{Z}, and k\pi (k \in \mathbb{Z})
    r"\s*(?:,?\s*\\text\s*\{\s*,?\s*(?:where|for|with|for\s+(?:all|any|some))\s*\}\s*(\w\s*\\in\s*\\mathbb\s*\{?[ZN]\}?)"
    r"|,?\s*\(\s*(\w\s*\\in\s*\\mathbb\s*\{?[ZN]\}?)\s*\))$"
)
MAX_BOXES = 50  # one inside the other; more is not an answer
_OVER = re.compile(r"\{([^{}]*)\\(over|choose)(?![a-zA-Z])([^{}]*)\}")


def clean(text: str) -> str:
    """One spelling of a formula. Idempotent in effect; never evaluates anything."""
    if text.isascii() and text.isdigit():
        return text  # most answers
    return _cleaned_once(text) if len(text) <= MAX_CACHED else _cleaned(text)


def _cleaned(text: str) -> str:
    text = _CYCLE.sub(lambda m: rf"{m[1]}\overline{{{m[2] or m[3]}}}", _BRACED_SIGN.sub(r"\1", text))
    text = _CURRENCY.sub(r"\2\1", _ROW_SPACE.sub(" ", _BLANKS.sub(" ", text)))
    text = _VULGAR_RUN.sub(lambda m: (f"{m[1]} " if m[1] else "") + _VULGAR[m[2]], text)
    text = _SUP_RUN.sub(lambda m: "^{" + m[0].translate(_SUPERSCRIPTS) + "}", text)
    text = _SUB_RUN.sub(lambda m: "_{" + m[0].translate(_SUBSCRIPTS) + "}", text)
    text = _SIGN.sub(lambda m: _SIGNS[m[0]], text)
    text = _THIN_GROUP.sub(lambda m: re.sub(r"\D", "", m[0]), text)
    text = _SIGN.sub(lambda m: _SIGNS[m[0]], visible(text))
    text = _strip_wrappers(_one_line(_DOLLARS.sub(r"\1 \\text{ dollars}", text)))
    text = _TEMPERATURE.sub(lambda m: rf" \text{{ deg{m[1] or m[2]}}}", text)
    text = _OVER.sub(lambda m: rf"\{'frac' if m[2] == 'over' else 'binom'}{{{m[1]}}}{{{m[3]}}}", text)
    text = _DRESSING.sub("", _STYLE_SWITCH.sub(" ", _COLOUR.sub("", text)))
    text = " ".join(_NOISE.sub(" ", text).replace("{,}", "." if text.count("{,}") == 1 else ",").split())
    text = _trim(" ".join(_ORDINAL.sub(" ", text).split()))
    if "C" in text:
        text = _COMBINATIONS.sub(_binomial, text)
    if "\\in" in text:
        text = _PARAMETER.sub(lambda m: f", {m[1] or m[2]}", text)
    if _SPACED_GROUPS.fullmatch(text):
        text = text.replace(" ", "")
    for _ in range(MAX_BOXES):
        if not text.startswith("{") or "," in text or closing_brace(text, 0) != len(text):
            break
        text = _trim(text[1:-1])
    return text


def _binomial(match: re.Match[str]) -> str:
    top, bottom = match[1] or match[3], match[2] or match[4]
    return rf"\binom{{{top}}}{{{bottom}}}" if int(bottom[:9]) <= int(top[:9]) else match[0]


_cleaned_once = lru_cache(maxsize=4096)(_cleaned)  # a group of samples has one gold, and few answers


def _one_line(text: str) -> str:
    """An alignment of a single line without its dressing."""
    lines = _ALIGNED.fullmatch(text)
    return text if lines is None or "\\\\" in lines[2] else lines[2].replace("&", "")


def _strip_wrappers(text: str) -> str:
    """Dollar signs, display delimiters, inner boxes and markdown emphasis around the whole or inside."""
    text = re.sub(r"\\[()\[\]]", " ", text) if not re.search(r"\\\\\s*\[", text) else text
    text = (
        re.sub(r"\\\$|\$", " ", text).replace("**", " ")
        if "**" not in text or _emphasis(text)
        else text.replace("$", " ")
    )
    for _ in range(MAX_BOXES):
        start = re.search(r"\\(?:boxed|fbox|framebox)\s*\{", text)
        end = closing_brace(text, start.end() - 1) if start else None
        if start is None or end is None:
            break
        text = text[: start.start()] + text[start.end() : end - 1] + text[end:]
    return text


def _emphasis(text: str) -> bool:
    """Whether ** is markdown bold rather than a power: 3*x**2 is a power, **73** is bold."""
    return not re.search(r"[\w)}]\s*\*\*\s*[\w({\\+-]", text)


def _trim(text: str) -> str:
    """Drop labels, a final dot and empty decoration from both ends."""
    before = None
    while before != text:
        before = text
        text = _LABEL.sub("", text.strip())
        text = text.rstrip(" .,;:").lstrip(' ,;:*_`"=').rstrip(' *_`"')  # no "?": a doubt; no "!": a factorial
    return text
