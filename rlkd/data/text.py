"""Text as the data steps compare it: normal forms, words, n-grams, masked numbers, sentences, answer kinds."""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections.abc import Sequence
from itertools import pairwise

_SPACES = re.compile(r"\s+")
_WORDS = re.compile(r"[^\W_]+")
_NUMBERS = re.compile(r"\d+(?:[.,:/]\d+)*")
_WRITTEN_NUMBERS = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen "
    "seventeen eighteen nineteen twenty thirty forty fifty sixty seventy eighty ninety hundred thousand million"
)
_NUMBER_WORDS = frozenset(_WRITTEN_NUMBERS.split())
NUMBER = "0"

# A sentence ends at . ! ? before white space, or at a line break. "3.5", "e.g." inside a line and "x_1." at an end
# of line behave; what matters to the steps is that the pieces join to the text again.
_SENTENCE_END = re.compile(r"(?<=[.!?])\s+(?=\S)|\n+\s*(?=\S)")

_TRUTH = frozenset({"yes", "no", "true", "false", "maybe"})
_PLAIN_NUMBER = re.compile(r"[-+]?\$?\d[\d,]*(?:\.\d+)?%?")
SENTINELS = frozenset({"proof", "notfound", "not found", "n/a", "na", "nan", "none", "null", "unknown", "-", "?", ""})


def normal_form(text: str) -> str:
    """Unicode-normalised, case-folded, white space collapsed. Signs and operators stay: x+1 is not x-1."""
    return _SPACES.sub(" ", unicodedata.normalize("NFKC", text).casefold()).strip()


def text_key(text: str) -> bytes:
    """16 bytes that are equal for texts of one normal form."""
    return hashlib.blake2b(normal_form(text).encode("utf-8", "surrogatepass"), digest_size=16).digest()


def words(text: str) -> list[str]:
    """Case-folded words and numbers; punctuation and LaTeX markup signs are dropped."""
    return _WORDS.findall(unicodedata.normalize("NFKC", text).casefold())


def masked_words(text: str) -> list[str]:
    """Words with every number, written in digits or letters, replaced by ``0``: number-swapped copies become equal."""
    masked = _NUMBERS.sub(f" {NUMBER} ", unicodedata.normalize("NFKC", text).casefold())
    return [NUMBER if word in _NUMBER_WORDS else word for word in _WORDS.findall(masked)]


def ngrams(items: Sequence[str], n: int) -> list[str]:
    """All runs of ``n`` words, in order, as strings; a text shorter than ``n`` is its own only run."""
    if not items:
        return []
    if len(items) <= n:
        return [" ".join(items)]
    return [" ".join(items[start : start + n]) for start in range(len(items) - n + 1)]


def sentences(text: str) -> list[tuple[int, int]]:
    """Character spans of the sentences of ``text``. The spans are disjoint, in order and cover the whole text."""
    cuts = [match.end() for match in _SENTENCE_END.finditer(text)]
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
