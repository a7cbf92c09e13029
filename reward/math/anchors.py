"""Words that announce the answer, per language. Decimal commas are read in answers that some of them announce."""

from __future__ import annotations

import re
from dataclasses import dataclass

_ENGLISH = (
    r"(?:answers?|results?|ans|solutions?)\s*(?:\(s\))?\s*(?:\*\*|__)?\s*"
    r"(?:is(?:\s+(?:therefore|thus|then|just|simply))?(?!\w)|are\b|equals\b|=|:|：|will\s+be\b|would\s+be\b|comes\s+(?:out\s+)?to\b)"
)
_LINES = r"^a\s*:|^[#* \t]{0,20}(?:final\s+)?answer[*\s]*:?\s*[*]*\s*$"
# Other languages: a stem that any such announcement holds, and the announcement.
_EAST_ASIAN = (
    ("答案", r"(?:最[终終]|最[后後]的?|正[确確])?答案\s*(?:应该|應該|就)?\s*(?:是|[为為]|：|:)"),
    ("果", r"[结結]果\s*(?:是|[为為]|：|:)"),
    ("答", r"答え\s*(?:は|：|:)|答\s*(?:：|:)"),
    ("답", r"(?:정답|답)\s*(?:은|는|:)"),
)
_COMMA = (
    ("respuesta", r"(?:la\s+)?respuesta(?:\s+final|\s+correcta)?\s*(?:es|:)"),
    ("ponse", r"(?:la\s+)?r[ée]ponse(?:\s+finale)?\s*(?:est|:)"),
    ("antwort", r"(?:die\s+)?antwort\s*(?:ist|lautet|:)"),
    ("risposta", r"(?:la\s+)?risposta(?:\s+finale)?\s*(?:è|e'|:)"),
    ("resposta", r"(?:a\s+)?resposta(?:\s+final)?\s*(?:é|:)"),
    ("antwoord", r"(?:het\s+)?antwoord\s*(?:is|:)"),
    ("odpowied", r"odpowied[źz]\s*(?:to|:)"),
    ("ergebnis", r"(?:das\s+)?ergebnis\s*(?:ist|lautet|:)"),
    ("jawaban", r"jawaban(?:nya)?\s*(?:adalah|:)"),
    ("cevap", r"cevap\s*:"),
    ("svar", r"\bsvare?t?\s*(?:er|är|:)"),
    ("vastaus", r"\bvastaus\s*(?:on|:)"),
    ("ответ", r"ответ\s*(?:\s*—|\s*-|:|равен)"),
    ("đáp", r"đáp\s+án\s*(?:là|:)"),
    ("câu", r"câu\s+trả\s+lời\s*(?:là|:)"),
    ("الجواب", r"الجواب\s*(?:هو|هي|:)"),
    ("الإجابة", r"الإجابة\s*(?:هو|هي|:)"),
    ("उत्तर", r"उत्तर\s*(?:है|:)"),
    ("відповідь", r"відповідь\s*(?:—|-|:)"),
    ("отговор", r"отговор\s*:"),
    ("απάντηση", r"απάντηση\s*(?:είναι|:)"),
    ("คำตอบ", r"คำตอบ\s*(?:คือ|:)"),
    ("תשובה", r"תשובה\s*(?:היא|:)"),
    ("پاسخ", r"پاسخ\s*:"),
    ("odpověď", r"odpověď\s*(?:je|:)"),
    ("válasz", r"válasz\s*:"),
    ("răspuns", r"răspuns(?:ul)?\s*(?:este|:)"),
)
# English alone goes over lower-case text: without IGNORECASE the first letters make a fast scan.
_WORDS, _LINE = re.compile(_ENGLISH), re.compile(_LINES, re.MULTILINE)
COMMA_LANGUAGE = re.compile("|".join(pattern for _, pattern in _COMMA), re.IGNORECASE)
_PLAIN = "|".join([_ENGLISH, *(pattern for _, pattern in _EAST_ASIAN)])
_ANY = re.compile(
    f"(?P<plain>{_PLAIN})|(?P<comma>{COMMA_LANGUAGE.pattern})|{_LINES}",
    re.IGNORECASE | re.MULTILINE,
)
_STEMS = tuple(stem for stem, _ in (*_EAST_ASIAN, *_COMMA))
_ASCII_STEMS = tuple(stem for stem in _STEMS if stem.isascii())


@dataclass(frozen=True, slots=True)
class Anchor:
    """Where an announcement stands, and whether its language writes decimals with a comma."""

    start: int
    end: int
    comma: bool = False


def last_anchor(text: str) -> Anchor | None:
    """The last announcement of an answer."""
    lowered = text.lower()
    stems = _ASCII_STEMS if lowered.isascii() else _STEMS
    if len(lowered) != len(text) or any(stem in lowered for stem in stems):
        match = None
        for match in _ANY.finditer(text):  # noqa: B007 - the last one
            pass
        return Anchor(match.start(), match.end(), match["comma"] is not None) if match else None
    found = [Anchor(*hit.span()) for hit in (*_WORDS.finditer(lowered), *_LINE.finditer(lowered))]
    if not found:
        return None
    last = max(found, key=lambda anchor: anchor.start)
    return next((anchor for anchor in found if anchor.start < last.start < anchor.end), last)
