"""Golds: what the dataset calls the answer, made usable or refused with a reason."""

from __future__ import annotations

import math
import re
from fractions import Fraction
from functools import lru_cache
from operator import eq, ge, gt, le, lt, ne
from typing import Any

import mpmath

from reward.math.nodes import SCALARS, Node, UnparsedError, num
from reward.math.normalise import clean
from reward.math.scalar import _MP, DIGITS, free_symbols, infinite_sign, same_function
from reward.math.structure import NoSuchDigitError, parse
from reward.math.value import Approximator, PoleError, TooLargeError, UndefinedError, exact
from reward.text import last_box

_SENTINEL_WORDS = """
proof notfound not_found nan none null nil n/a na unknown see_solution see_below see_above todo tbd - ? error
missing omitted tba invalid [invalid] unanswerable answer solution \\square \\blacksquare \\qed \\boxed
to_be_determined placeholder object_object redacted hidden deleted varies n.a. not_specified
pending unk shown coming_soon traceback parse_error ans [blank]
no_answer not_available not_applicable no_final_answer nothing empty
"""
SENTINELS = frozenset(_SENTINEL_WORDS.split())
_NO_ANSWER = re.compile(
    r"\b(?:see|refer|shown)\b.*\b(?:explanations?|solutions?|above|below|figure|diagram|graph|text|table|attached|key|page|part"
    r"|section|chapter|appendix|image|picture)\b"
    r"|\banswers?\s+(?:may|will|can)\s+vary\b|\bno\s+(?:final\s+)?answers?\b"
    r"|\bno\s+solutions?\s+(?:(?:is|was|were|are)\s+)?(?:provided|available|given|found)\b"
    r"|\b(?:answers?|solutions?)\b.*\bnot\s+(?:found|available|given|provided|known)\b"
    r"|\bto\s+be\s+(?:filled|added|announced|completed|determined)\b|\bfill\s+in\s+the\b"
    r"|\b(?:insert|enter|type|write|put|your)\s+(?:\w+\s+){0,2}answers?\b"
    r"|\bfailed\s+to\s+(?:parse|extract|load)\b|^(?:error|exception|timeout|todo|fixme)\b\s*:|^#(?:value|div/0|name|num|null|ref|n/a)\b"
    r"|\b(?:proofs?|proved?|q\.?e\.?d)\b|\bleft\s+(?:to|as)\b.*\b(?:reader|exercise)\b|^(?:same\s+)?as\s+(?:above|below)$"
)
_NO_ANSWER_ELSEWHERE = re.compile(  # omitted, none, see the solution: in other languages
    r"(?:答案|证明|證明|解答|过程|過程|解)?\s*:?\s*(?:从?略|省略|解[説说]参照|해설\s*참조|[见見](?:解析|上|下|上文|下文|[图圖])"
    r"|如[图圖上下](?:所示)?|[暂暫]?[无無](?:答案)?|[没沒]有答案|未知|なし|없음)"
    r"|(?:voir|siehe|ver|v[ée]ase|vedi|см|zie|zob)\s+(?:la\s+|die\s+|l')?"
    r"(?:ci-dessus|ci-dessous|oben|unten|arriba|abajo|acima|abaixo|sopra|выше|ниже"
    r"|solution|l[öo]sung|soluci[óo]n|solu[çc][ãa]o|soluzione|решение|рисунок|figur[ea]|abbildung)"
    r"|pas\s+de\s+réponse|keine\s+antwort|sin\s+respuesta|sem\s+resposta|nessuna\s+risposta|нет\s+ответа"
)
_MATTER = r"answers?|solutions?|explanations?|responses?|workings?"
_FATE = (
    r"provided|available|supplied|specified|recorded|extracted|omitted|pending|unavailable|missing|parsed?|required|shown"
    r"|redacted"
)
_FILLER = (
    r"the|an?|is|are|was|were|as|be|been|to|not|no|cannot|could|can't|final|correct|valid|sample|example|yet|here|this|in|above|below"
    r"|key|known|given|included|find|found|provide|get"
)
_ABOUT_ITSELF = re.compile(  # the final answer, solution omitted, not provided, as required: no word of another matter
    rf"(?!(?:there\s+(?:is|are)\s+)?no\s+solutions?$)"
    rf"(?=.*\b(?:{_MATTER}|(?:not|as|cannot|could)\s+(?:be\s+|been\s+)?(?:{_FATE}))\b)(?:(?:{_MATTER}|{_FATE}|{_FILLER})\b\s*)+"
)
_CUT_OFF = re.compile(r"\d\s*[*/^]$|[\w)}]\s*=$|\d[a-z]?\s+[-+]$|\\(?:frac(?:\s*\{[^{}]*\})?|sqrt|cdot|times|div)$")
_HOLDS = {"=": eq, "ne": ne, "<": lt, ">": gt, "le": le, "ge": ge}
_JOINED = str.maketrans(" -", "__")
MAX_GOLD_BITS = 10_000
MAX_WORDS = 12  # of a gold in words; a longer one is a solution, not an answer


class BadGoldError(Exception):
    """This example cannot be judged."""


def gold_text(answer: Any) -> str:
    """The gold as cleaned text. Raises: BadGoldError."""
    if answer is None or isinstance(answer, bool) or (isinstance(answer, float) and not math.isfinite(answer)):
        raise BadGoldError(f"answer is {answer!r}")
    if isinstance(answer, float):
        answer = int(answer) if answer == int(answer) and abs(answer) < 1e15 else repr(answer)
    if isinstance(answer, (list, tuple)):
        answer = ", ".join(map(str, answer))
    if isinstance(answer, (dict, set, bytes)):
        raise BadGoldError(f"answer is a {type(answer).__name__}")
    if isinstance(answer, int) and answer.bit_length() > MAX_GOLD_BITS:
        raise BadGoldError("answer is a number of thousands of digits")
    text = str(answer)
    if "####" in text:
        text = text.rpartition("####")[2]
    box = last_box(text)
    text = clean(box if box is not None else text)
    words = flat(text).replace(".", "").lstrip("+-")
    bare = words.strip("()[]<>")
    joined = re.sub(r"\s*/\s*", "/", bare).translate(_JOINED)
    if not words or {text.casefold(), joined} & SENTINELS or _no_answer(words, bare):
        raise BadGoldError(f"answer {answer!r:.80} is no answer")
    if fault := _fault(text):
        raise BadGoldError(f"{fault}: {text[:80]!r}")
    return text


@lru_cache(maxsize=4096)
def _fault(text: str) -> str:
    """What makes a cleaned gold unusable; empty when nothing does."""
    words = re.findall(r"(?<!\\)\b[^\W\d_]{2,}\b", re.sub(r"\\[a-zA-Z]+", " ", text))
    if len(words) > MAX_WORDS:
        return f"{len(words)} words look like a solution"
    try:
        trees = readings(text) or ((parse(text),) if "_" in text else ())
    except NoSuchDigitError as error:
        return str(error)
    except (UnparsedError, RecursionError):
        trees = ()
    bare = re.sub(r"\\[a-zA-Z]+", "", text)
    if not trees and bare.strip() and not re.search(r"[^\W_]", bare):
        return "unreadable"
    if text.count("\\begin{") != text.count("\\end{"):
        return "open environment"
    if not trees and (_opens(text) or _CUT_OFF.search(text)):
        return "cut off"
    return "" if not trees or any(map(has_value, trees)) else "has no value"


def _no_answer(words: str, bare: str) -> bool:
    return bool(_NO_ANSWER.search(words) or _NO_ANSWER_ELSEWHERE.fullmatch(bare) or _ABOUT_ITSELF.fullmatch(bare))


def _opens(text: str) -> bool:
    """A bracket that nothing closes, were it by another one as of an interval."""
    plain = re.sub(r"\\[{}]", "", text)
    if plain.count("{") > plain.count("}") or text.count("(") > text.count(")") + text.count("]"):
        return True
    return bool(re.match(r"\[[^\[\])]*$", text) or re.match(r"\\\{(?!.*(?:\\\}|\\begin))", text))


def has_value(node: Node) -> bool:
    """Whether nothing in it divides by zero or contradicts itself. Its value, which may be large, is not computed."""
    if node.op == "ellipsis" or _contradicts(node):
        return False
    if node.op in SCALARS and node.has("infinity"):
        return infinite_sign(node) != 0  # a difference or a quotient of infinities is nothing
    if node.op in SCALARS and not free_symbols(node):
        try:
            if exact(node) is None:
                with _MP, mpmath.workdps(DIGITS):
                    Approximator({}).value(node)
        except PoleError:
            return False
        except (UndefinedError, TooLargeError):
            return True
    for part in node.walk():
        if part.op != "div":
            continue
        if same_function(part.args[1], num(0)) if free_symbols(part.args[1]) else exact_or_none(part.args[1]) == 0:
            return False
    return all(has_value(arg) for arg in node.args if arg.op not in SCALARS)


def _contradicts(node: Node) -> bool:
    """5 = 7, 3 < 2: exact numbers side by side. Decimals may be rounded, and units may convert."""
    if node.op != "rel":
        return False
    values = [_plain_value(arg) for arg in node.args]
    return any(
        left is not None and right is not None and name in _HOLDS and not _HOLDS[name](left, right)
        for left, name, right in zip(values, node.name.split(), values[1:], strict=False)
    )


def _plain_value(node: Node) -> Fraction | None:
    if node.op not in SCALARS or free_symbols(node) or any(part.decimals >= 0 or part.unit for part in node.walk()):
        return None
    return exact_or_none(node)


def exact_or_none(node: Node) -> Fraction | None:
    try:
        return exact(node)
    except UndefinedError:
        return None


@lru_cache(maxsize=4096)
def readings(text: str) -> tuple[Node, ...]:
    """The trees of a cleaned text: commas as grouping first, then as separators. Empty when unparsed."""
    out: list[Node] = []
    for grouped in (True, False) if re.search(r"\d,\d{3}(?!\d)", text) else (True,):
        try:
            out.append(parse(text, grouped=grouped))
        except (UnparsedError, RecursionError):
            continue
    return tuple(out)


def flat(text: str) -> str:
    """Words of a text answer, case-folded, without LaTeX dressing."""
    if text.isascii() and text.isalnum():
        return text.casefold()
    text = re.sub(r"\\(?:text|mbox|textrm|textbf|textit|mathrm|operatorname|mathbf)\s*(?=\{)", " ", text)
    text = re.sub(r"[{}$]|\\[,;! ]", " ", text)
    text = re.sub(r"^\s*\((.*)\)\s*$", r"\1", text)
    return " ".join(text.split()).strip(" .,;:!\"'`").casefold()


def squeezed(text: str) -> str:
    """Identity of formulas up to blanks, which is looked at before anything is evaluated. 3 1/2 is not 31/2."""
    return re.sub(r"\s+(?![\d.])|(?<!\d)\s+", "", text)
