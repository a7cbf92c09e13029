"""Golds: what the dataset calls the answer, made usable or refused with a reason."""

from __future__ import annotations

import math
import re
from fractions import Fraction
from functools import lru_cache
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
no_answer not_available not_applicable no_final_answer nothing empty
"""
SENTINELS = frozenset(_SENTINEL_WORDS.split())
_NO_ANSWER = re.compile(
    r"\b(?:see|refer|shown)\b.*\b(?:explanations?|solutions?|above|below|figure|diagram|graph|text|table|attached)\b"
    r"|\banswers?\s+(?:may|will|can)\s+vary\b|\bno\s+(?:answers?|solutions?)\s+(?:(?:is|was|were|are)\s+)?(?:provided|available|given|found)\b|^(?:error|exception|timeout)\b\s*:|\bto\s+be\s+(?:filled|added|announced|completed|determined)\b|\bfailed\s+to\s+(?:parse|extract|load)\b|\bno\s+(?:final\s+)?answers?\b|\b(?:proofs?|proved?|q\.?e\.?d)\b|\b(?:answers?|solutions?)\b.*\bnot\s+(?:found|available|given|provided|known)\b"
)
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
    if not words or _NO_ANSWER.search(words) or {text.casefold(), words.strip("[]<>").replace(" ", "_")} & SENTINELS:
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
    return "" if not trees or any(map(has_value, trees)) else "has no value"


def has_value(node: Node) -> bool:
    """Whether nothing in it divides by zero. Not a computation of its value: that may be large."""
    if node.op == "ellipsis":
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
