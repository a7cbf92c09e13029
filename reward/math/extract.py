"""Where in a completion the final answer stands. One committed answer or none: no fallback to an earlier formula."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from itertools import islice

from reward.math.anchors import COMMA_LANGUAGE, last_anchor
from reward.text import after_thinking, boxes, last_boxes, last_tags, squash, until_stop

MAX_ANSWER = 20_000
MAX_TURNS = 20  # that are looked at: an answer stands before the first few or before none
TAIL = 4000  # of a text without box or tag: the answer is looked for at its end

_TURN = re.compile(
    r"\n\s*(?:#+\s*)?(?:\*\*)?(?:next\s+)?(?:question|problem|user|human|instruction|exercise|q|task|input)(?:\s*\d+)?\s*(?:\*\*)?\s*:"
    r"|<\|(?:im_start|start_header_id|user|begin_of_text)\|?>|\[INST\]",
    re.IGNORECASE,
)
_HIDDEN = re.compile(r"<!--(?:(?!<!--).)*?-->|\\[hv]?phantom\s*\{(?:[^{}]|\{[^{}]*\}){0,500}\}", re.DOTALL)
_FORM = re.compile(  # a line that shows how an answer should look
    r"^[ \t>*_#]*(?:(?:example|sample)\s+(?:format|answer|output|response)"
    r"|(?:answer|output|response)?\s*(?:format|template))\s*[*_]*:.*$",
    re.IGNORECASE | re.MULTILINE,
)
_COMMENT = re.compile(r"(?<![\\\d])(?<!\d\s)%[ \t].*$", re.MULTILINE)
_GSM_NUMBER = re.compile(r"^####\s*[-$\\]?\d", re.MULTILINE)
_GSM = re.compile(r"####\s*(.+)")

_SENTENCE_END = re.compile(  # a line that ends in a comma, or is followed by "or", goes on
    r"(?<=[^.\s])\.(?=\s+[A-Z\"'(\\*]|\s*$|\s*\n|\*)(?!\s+(?:Or|Alternatively),?\s+(?:maybe\s+|perhaps\s+|possibly\s+)?[$\\\d-])"
    r"|(?<![,;])\n(?!\s*\(?[oO][rR]\b)|(?<=[,;])\n(?!\s*(?:[$\\\d-]|\(?[oO][rR]\b))|[。；！？]|(?<=\d)!(?=\s+[A-Z])"
    r"|,\s+(?:and\s+)?not\s+(?=[$\\\d-])|,\s+and\s+(?:we|so|the|this|it|that|thus|hence|therefore)\b"
    r"|,?\s+(?:because|since|which|so|as\s+(?:required|desired|we|the)|where|i\.e\.|rather\s+than|instead\s+of|hence|thus|therefore"
    r"|but(?!\s+(?:it\s+)?(?:maybe|perhaps|possibly|also|could|might|may|or)\b)|for\s+the)\b"
)
_HEDGE = re.compile(
    r"\b(?:might|may|maybe|perhaps|possibly|could|probably|not\s+sure|cannot|can't|don't\s+know|asked|suppose|assume|if|"
    r"guess|unsure|let|so\s+far|partial|for\s+now|tentative|either|close\s+to|not|isn't|aren't|wrong|incorrect)\b|\?",
    re.IGNORECASE,
)
_GOES_ON = re.compile(  # behind a formula: another one beside it
    r"\s*(?:[,;/&]\s*|\b(?:and|or)\b\s*|\(\s*(?=\$[^$\n]*\$\s+also\b|or\b|maybe\b|perhaps\b|possibly\b|alternatively\b))+"
    r"(?:(?:and|or|maybe|perhaps|possibly|alternatively)\b[\s,]*)*[$\\(\d]",
    re.IGNORECASE,
)
_ITEMS = re.compile(r"[ \t:*]*(?:\n\s*(?:[-*•+]|\d{1,2}[.)])[ \t]+\S[^\n]*){2,}")  # below "Answer:"
_ITEM = re.compile(r"\n\s*(?:[-*•+]|\d{1,2}[.)])[ \t]+(\S[^\n]*)")
_ASKS = re.compile(r"\b(?:how|what|which|who|where)\b[^?]*\?\s*$", re.IGNORECASE)
_IS_ANSWER = re.compile(  # 25 is the answer
    r"[\s*_]*(?P<value>[^\s*_][^\n]{0,80}?)[*_]* (?:is|was) (?:therefore |thus )?(?:the|our|my) "
    r"(?:final |correct )*answer\b[\s.!*]*$",
    re.IGNORECASE,
)
_STATES = re.compile(
    r"(?:\b(?:is|are|was|were|equals?|comes?\s+to|makes?|gives?|gets?|totals?|costs?|has|have|needs?|obtains?|yields?|be|left|"
    r"to|get|earns?|pays?|sells?|takes?|spends?)\b|=)\s*(?:a\s+total\s+of\s+|exactly\s+|equal\s+to\s+|to\s+)?"
    r"(?:(?:a\s+)?(?:length|area|value|volume|sum|radius|perimeter|measure|slope|magnitude|degree|size)\s+(?:of\s+)?(?=[$\d\\]))?(?P<value>.+)$",
    re.IGNORECASE | re.DOTALL,
)


@dataclass(frozen=True, slots=True)
class Extracted:
    """The final answer's text. ``parts``: all boxes in order; ``side_by_side``: those of one list.

    ``comma``: the language writes decimals with a comma.
    """

    text: str
    how: str
    parts: tuple[str, ...] = ()
    side_by_side: tuple[str, ...] = ()
    comma: bool = False


def extract(completion: str, *, prose: bool) -> Extracted | None:
    """The committed final answer, or None. Only what is said outside thinking, in this turn, counts."""
    said = after_thinking(until_stop(completion))
    if said is None:
        return None
    said = squash(_HIDDEN.sub(" ", said) if "<!--" in said or "phantom" in said else said)
    said = _this_turn(_FORM.sub("", _COMMENT.sub("", said) if "%" in said else said))
    tags = last_tags(said)
    if tags:
        inner = ", ".join(tags)
        boxed = _from_boxes(inner)
        return boxed or (None if "\\boxed" in inner or not inner else _announced(inner) or Extracted(inner, "tag"))
    if "\\boxed" in said or "\\fbox" in said or "\\framebox" in said:
        boxed = _from_boxes(said)
        if boxed:
            comma = re.search(r"\d,\d", boxed.text) and COMMA_LANGUAGE.search(said[-TAIL:])
            return replace(boxed, comma=bool(comma))
        return None if boxes(said) else _announced(said)
    return _announced(said) or (_stated(said) if prose else None)


def _this_turn(text: str) -> str:
    """Cut where the model begins to play the next question, once it has answered this one."""
    for turn in islice(_TURN.finditer(text), MAX_TURNS):
        before = text[: turn.start()]
        if "\\boxed" in before or last_tags(before) or _GSM_NUMBER.search(before) or last_anchor(before[-TAIL:]):
            return before
    return text


def _from_boxes(text: str) -> Extracted | None:
    """The last box. Boxes side by side with nothing said between them are one list."""
    side_by_side = last_boxes(text)
    answer = ", ".join(side_by_side)
    found = boxes(text)
    if not answer or len(answer) > MAX_ANSWER:
        return None
    whole = dict.fromkeys(content for _, _, content in found if content is not None)
    return Extracted(answer, "box", tuple(whole), tuple(side_by_side))


def _announced(text: str) -> Extracted | None:
    """What follows the last "the answer is", "Answer:", "####" and their kin."""
    tail = text[-TAIL:]
    gsm = list(_GSM.finditer(tail))
    if gsm:
        return Extracted(gsm[-1][1].strip(), "hash")
    anchor = last_anchor(tail)
    if anchor is None or _negated(tail, anchor.start):
        return None
    value = _value_of(tail[anchor.end :])
    return Extracted(value, "announced", comma=anchor.comma) if value else None


def _negated(text: str, at: int) -> bool:
    """ "I do not know whether the answer is 7", "is the answer 6?" commit to nothing."""
    before = re.split(r"[.\n!]", text[:at])[-1]
    after = text[at : at + 200].split("\n")[0]
    return bool(
        re.search(
            r"\b(?:if|whether|not\s+(?:sure|know)|don't\s+know|cannot|maybe|perhaps|might|suppose|assum(?:e|ing)|imagine)\b",
            before,
            re.I,
        )
    ) or bool(re.match(r"[^.]*\?", after))


def _value_of(rest: str) -> str:
    """The rest of the sentence, or the items below it; math delimiters that open the value also close it."""
    if items := _ITEMS.match(rest):
        return ", ".join(_value_of(item) for item in _ITEM.findall(items[0]))
    rest = re.sub(r"^([\s:：]*)\*\*([^*\n]+)\*\*(?=\s)", r"\1\2", rest)
    rest = rest.lstrip(" \t*_:：\n")
    rest = re.sub(r"^(?:therefore|thus|then|simply|just|exactly|equal\s+to|given\s+by)\s*,?:?\s*", "", rest, flags=re.I)
    rest = re.sub(r"^not\s+[^\s,]+,?\s+but\s+(?:rather\s+)?", "", rest)
    math = re.match(
        r"\$\$(.+?)\$\$|\\\[(.+?)\\\]|\\\((.+?)\\\)|\$(?!\d[\d,.]*(?:\s|$|\.|\*))([^$]+?)\$", rest, re.DOTALL
    )
    if math and not _GOES_ON.match(rest, math.end()):
        unit = re.match(r"\s*([a-zA-Z%°]+)?", rest[math.end() :].split(".")[0])
        inner = next(group for group in math.groups() if group is not None)
        word = unit[1] if unit and unit[1] and _only_word(rest[math.end() :]) else ""
        return inner.strip() + (f" \\text{{ {word}}}" if word else "")
    rest = re.sub(r"(?<=\d)\s+\((?!or\b)[a-z -]+\)(?=[.\s]*$)", "", rest)  # 8 (eight)
    end = _SENTENCE_END.search(rest)
    value = re.sub(r"(?<=[*_$])!+$", "", rest[: end.start()] if end else rest)  # **5**! is no factorial
    return value.strip(" \t*_`,;#").removesuffix(".").strip(" *_")


def _only_word(after: str) -> bool:
    """Whether what follows the formula up to the sentence's end is one word, a unit."""
    return bool(re.match(r"\s*[a-zA-Z%°]+\s*(?:[.\n]|$)", after))


def _stated(text: str) -> Extracted | None:
    """A completion without any marker: itself when it is a bare formula, else the last plain statement's value."""
    text = re.sub(r"^```\w*\n(.*)\n```$", r"\1", text.strip(), flags=re.DOTALL)
    text = re.sub(r"^(?:so|thus|hence|therefore)\b,?\s+(?=[$\\\d-])", "", text, flags=re.IGNORECASE)
    if (
        len(text) <= 300
        and "\n" not in text
        and not re.search(r"[a-zA-Z]{2,}.*\s.*[a-zA-Z]{2,}|\b(?:is|get|have)\b", re.sub(r"\\[a-zA-Z]+", "", text))
    ):
        return Extracted(text, "bare")
    for sentence in reversed(_sentences(text[-TAIL:])):
        if _ASKS.search(sentence):
            return None
        if not re.search(r"\d|\$|\\\(|\\\[|\b(?:true|false|yes|no)\s*$", sentence, re.IGNORECASE) or re.match(
            r"\s*(?:\d+\.?|\w+:)", sentence
        ):
            continue
        states = _IS_ANSWER.match(sentence) or _STATES.search(sentence)
        if _HEDGE.search(sentence) or states is None:
            return None
        value = _value_of(_last_statement(states["value"]))
        return Extracted(_with_unit(value), "stated") if value else None
    return None


def _last_statement(value: str) -> str:
    again = _STATES.search(value)
    return _last_statement(again["value"]) if again and re.search(r"\d|\$|\\", again["value"]) else value


def _with_unit(value: str) -> str:
    """ "10 objects" as a number with a unit: plain words behind a number say what is counted."""
    match = re.fullmatch(r"(\$?[\d.,]+%?)\s+([A-Za-z][A-Za-z ]{0,40})", value)
    return f"{match[1]} \\text{{ {match[2].split()[0]}}}" if match else value


def _sentences(text: str) -> list[str]:
    return [
        part
        for part in re.split(r"(?<=[^\d\s.])\.\s+|(?<=\d)\.\s+(?=[A-Z])|\.$|\n+|[。！？]|(?<=\?)\s|!\s", text)
        if part.strip()
    ]
