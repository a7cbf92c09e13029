"""Text as the data steps compare it: normal forms, words, n-grams, masked numbers, sentences, answer kinds."""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections.abc import Sequence
from itertools import pairwise

_SPACES = re.compile(r"\s+")
# What Unicode's compatibility form would run into the number before it: 10 squared is not 102, nor one and a half 11/2.
_RAISED = re.compile("[\u2070\u00b9\u00b2\u00b3\u2074-\u2079\u207a\u207b\u207f]+")
_LOWERED = re.compile("[\u2080-\u208b]+")
_FRACTION = re.compile("(?<=\\d)(?=[\u00bc-\u00be\u2150-\u215e])")
# Vowel signs and accents belong to the letter before them, but are no letters to a regular expression.
_MARKS = "".join(sign for sign in map(chr, range(0x300, 0x10000)) if unicodedata.category(sign).startswith("M"))
# Scripts without spaces between words (Thai to Khmer, kana, Han): there a character counts as a word.
_UNSPACED = (
    "\u0e01-\u0e30\u0e81-\u0eb0\u1000-\u102a\u1780-\u17b3\u3041-\u30ff\u3400-\u4dbf\u4e00-\u9fff\U00020000-\U0003ffff"
)
_ASCII_WORDS = re.compile(r"[^\W_]+")
_WORDS = re.compile(f"[{_UNSPACED}][{_MARKS}]*|[^\\W_{_UNSPACED}]+(?:[{_MARKS}]+[^\\W_{_UNSPACED}]*)*")
_HAN_NUMBERS = "\u3007\u96f6\u4e00\u4e8c\u4e24\u4e09\u56db\u4e94\u516d\u4e03\u516b\u4e5d\u5341\u767e\u5343\u4e07\u4ebf"
_NUMBERS = re.compile(f"\\d+(?:[.,:/]\\d+)*|[{_HAN_NUMBERS}]+")
_WRITTEN_NUMBERS = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen "
    "seventeen eighteen nineteen twenty thirty forty fifty sixty seventy eighty ninety hundred thousand million"
)
_NUMBER_WORDS = frozenset(_WRITTEN_NUMBERS.split())
NUMBER = "0"

_NAMED_OPERATORS = (
    r"\le \leq \ge \geq \lt \gt \ne \neq \pm \mp \times \cdot \div "
    r"\cap \cup \subset \supset \sin \cos \tan \log \ln \sqrt"
)
_NAMED_FIGURES = _NUMBER_WORDS | frozenset(_NAMED_OPERATORS.split())
# Digits inside a name (w3f) are part of it; a hyphen or slash between words, a bold ** and a bare ! are punctuation.
_FIGURES = re.compile(
    rf"[a-z][a-z0-9]*|\\[a-z]+|\d+(?:[.,]\d+)*|[{_HAN_NUMBERS}]+|[+=<>^%|\u00b1\u00d7\u00f7\u2260\u2264\u2265\u221a]"
    r"|[-/](?:(?<![^\W\d_]{2}[-/])|(?![^\W\d_]{2}))|\*(?<!\*\*)(?!\*)|[()](?<!\\[()])|!(?:(?<=\b\w!)|(?<=[\d)]!))"
)

# A sentence ends at . ! ? before white space, or at a line break. "3.5", "e.g." inside a line and "x_1." at an end
# of line behave; what matters to the steps is that the pieces join to the text again.
_SENTENCE_END = re.compile(r"(?<=[.!?])\s+(?=\S)|\n+\s*(?=\S)")

_TRUTH = frozenset({"yes", "no", "true", "false", "maybe"})
_PLAIN_NUMBER = re.compile(r"[-+]?\$?\d[\d,]*(?:\.\d+)?%?")
SENTINELS = frozenset({"proof", "notfound", "not found", "n/a", "na", "nan", "none", "null", "unknown", "-", "?", ""})


def normal_form(text: str) -> str:
    """Unicode-normalised, case-folded, white space collapsed. Signs and operators stay: x+1 is not x-1.

    A raised or lowered digit is written as in LaTeX, ``^2`` or ``_2``.
    """
    return _SPACES.sub(" ", _plain(text)).strip()


def _plain(text: str) -> str:
    if not text.isascii():
        text = _FRACTION.sub(" ", _LOWERED.sub(r"_\g<0>", _RAISED.sub(r"^\g<0>", text)))
    return unicodedata.normalize("NFKC", text).casefold().replace("\u2212", "-")


def text_key(text: str) -> bytes:
    """16 bytes that are equal for texts of one normal form."""
    return hashlib.blake2b(normal_form(text).encode("utf-8", "surrogatepass"), digest_size=16).digest()


def words(text: str) -> list[str]:
    """Case-folded words and numbers; punctuation and LaTeX markup signs are dropped.

    In a script without spaces every character is a word.
    """
    return _words(_plain(text))


def _words(plain: str) -> list[str]:
    return (_ASCII_WORDS if plain.isascii() else _WORDS).findall(plain)


def figures(text: str) -> list[str]:
    """Numbers, written ones too, operators and brackets, in order: what tells two instances of a template apart."""
    found = _FIGURES.findall(_plain(text))
    return [each for each in found if each in _NAMED_FIGURES or not (each[0] == "\\" or "a" <= each[0] <= "z")]


def masked_words(text: str) -> list[str]:
    """Words with every number, written in digits or letters, replaced by ``0``: number-swapped copies become equal."""
    masked = _NUMBERS.sub(f" {NUMBER} ", _plain(text))
    return [NUMBER if word in _NUMBER_WORDS else word for word in _words(masked)]


def ngrams(items: Sequence[str], n: int) -> list[str]:
    """All runs of ``n`` words, in order, as strings; a text shorter than ``n`` is its own only run."""
    if not items:
        return []
    if len(items) <= n:
        return [" ".join(items)]
    return [" ".join(items[start : start + n]) for start in range(len(items) - n + 1)]


def sentences(text: str) -> list[tuple[int, int]]:
    """Character spans of the sentences of ``text``. The spans are disjoint, in order and cover the whole text.

    The last blank before a sentence belongs to it, as tokens begin with the blank before their word; a line break
    belongs to the sentence that it ends.
    """
    cuts = [match.end() - (text[match.end() - 1] not in "\r\n") for match in _SENTENCE_END.finditer(text)]
    edges = [0, *cuts, len(text)]
    return [(begin, end) for begin, end in pairwise(edges) if end > begin]


def answer_kind(answer: str) -> str:
    """What a gold answer looks like: ``sentinel``, ``truth``, ``letter``, ``number``, ``expression`` or ``text``."""
    plain = normal_form(answer).strip("$ .")
    if plain in SENTINELS:
        return "sentinel"
    if plain in _TRUTH:
        return "truth"
    if re.fullmatch(r"\(?[a-j]\)?", plain):
        return "letter"
    if _PLAIN_NUMBER.fullmatch(plain):
        return "number"
    if re.search(r"[\\^_=+*/<>{}()\[\]]|\d", plain):
        return "expression"
    return "text"
