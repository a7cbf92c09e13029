"""Reading a completion: Unicode folding, thinking tags, turn markers, boxes and answer tags. No judgement here."""

from __future__ import annotations

import re
import unicodedata

MAX_CHARS = 1_000_000  # what is longer is cut to its end: the answer stands there
_INVISIBLE = dict.fromkeys([*range(0x200B, 0x2010), *range(0x202A, 0x202F), *range(0x2060, 0x2065), 0xFEFF, 0xAD])
_THINK_NAMES = (
    r"think(?:ing)?(?:_\w{1,20})?|thoughts?(?:_\w{1,20})?|reason(?:ing)?(?:_\w{1,20})?|scratch_?pad|reflection|analysis|rationale"
    r"|cot|chain_of_thought|(?:inner_)?monologue|deliberation|brainstorm(?:ing)?|planning|draft|internal_(?:thoughts?|reasoning)"
)
_THINK = re.compile(  # <think>, </think>, <a:think>, <think mode="x">, <think/>; and as other vendors write them
    rf"(?:[<＜]|&lt;)\s*/?\s*(?:[\w-]{{1,20}}[:_-])?(?:{_THINK_NAMES})(?:\s[^<>&]{{0,200}})?\s*/?(?:[>＞]|&gt;)"
    rf"|\[/?(?:THINK|THINKING|REASONING)\]|◁/?think▷"
    r"|<[|｜]/?(?:(?:begin|start|end)_(?:of_)?)?(?:think(?:ing)?|thought|reasoning)(?:_(?:start|end))?[|｜]>",
    re.IGNORECASE,
)
_CLOSES = re.compile(
    r"(?:[<＜\[◁]|&lt;|<[|｜])\s*/|.*/\s*(?:[>＞]|&gt;)$|<[|｜]end_|.*_end[|｜]>$", re.IGNORECASE | re.DOTALL
)
_MENTION = re.compile(
    r"\b(?:tokens?|tags?|words?|markers?|string|literal|the|an?|by|called|use|using|write)[ ]$", re.IGNORECASE
)
_STOP = re.compile(r"<\|(?:im_end|endoftext|eot_id|end_of_text|end)\|>|</s>|<｜end▁of▁sentence｜>")
_CHANNEL = re.compile(r"<\|channel\|>\s*(\w+)[^<]*<\|message\|>")  # thinking and answer as gpt-oss marks them
_ANSWER_TAG = re.compile(r"<\s*answer\s*>((?:(?!<\s*answer\s*>).)*?)<\s*/\s*answer\s*>", re.IGNORECASE | re.DOTALL)
_BLANKS = re.compile(r"\s{3,}")


def visible(text: str) -> str:
    """NFKC without zero-width and direction marks; blanks stay."""
    return unicodedata.normalize("NFKC", text.translate(_INVISIBLE)).translate(_INVISIBLE)


def fold(text: str, *, keep_case: bool = False) -> str:
    """One spelling for texts a reader would call the same: blanks, case, outer quotes and a final dot."""
    folded = " ".join(visible(text).split()).strip("\"'` ").rstrip(".").strip()
    return folded if keep_case else folded.casefold()


def after_thinking(text: str) -> str | None:
    """What is said outside thinking blocks; None when thinking never ends.

    A close without an open (the template had opened it) hides all before it. Nested opens need one close each,
    as far as there are closes; what follows the last close always counts as said. A tag inside prose
    ("the token <think> appears") is a word.
    """
    text = text[-MAX_CHARS:]
    tags = [tag for tag in _THINK.finditer(text) if _closes(tag) or not _is_prose(text, tag)]
    if not tags:
        return text
    last_close = max((tag.end() for tag in tags if _closes(tag)), default=0)
    opened_after = next((tag.start() for tag in tags if tag.start() >= last_close and not _closes(tag)), None)
    if opened_after is None:
        return _last_said(text, tags)
    said = text[last_close:opened_after]
    return said if said.strip() else None


def _closes(tag: re.Match[str]) -> bool:
    return _CLOSES.match(tag[0]) is not None  # <think/> too: it stands for a close, or hides nothing


def _last_said(text: str, tags: list[re.Match[str]]) -> str:
    """The text after the last close, or, when that is empty, the text said before the block it closes."""
    tail = text[tags[-1].end() :]
    if tail.strip():
        return tail
    depth_start = next((tag.start() for tag in reversed(tags) if not _closes(tag)), 0)
    previous_close = max((tag.end() for tag in tags if _closes(tag) and tag.end() <= depth_start), default=0)
    return text[previous_close:depth_start] if depth_start else ""


def _is_prose(text: str, tag: re.Match[str]) -> bool:
    before, after = text[max(0, tag.start() - 20) : tag.start()], text[tag.end() : tag.end() + 2]
    return (bool(_MENTION.search(before)) and bool(re.match(r"[ ][a-z]", after))) or before[-1:] in ("`", '"')


def until_stop(text: str) -> str:
    """Cut at the first stop token: what a sampler lets run on after it is not the answer.

    Where channels are marked, only the first final one is said.
    """
    channels = list(_CHANNEL.finditer(text))
    if channels:
        final = next((channel for channel in channels if channel[1] == "final"), None)
        text = text[final.end() :] if final else ""
    stop = _STOP.search(text)
    return text[: stop.start()] if stop else text


def squash(text: str) -> str:
    """Long runs of blanks as one or two: they say nothing, and patterns would walk them again and again."""
    return _BLANKS.sub(lambda run: "\n\n" if "\n" in run[0] else " ", text)


def last_tags(text: str) -> list[str]:
    """What the last answer tag holds, and those right before it: tags side by side are one list, as boxes are."""
    tags = list(_ANSWER_TAG.finditer(text))
    run = tags[-1:]
    for before in reversed(tags[:-1]):
        if not _side_by_side(text[before.end() : run[-1].start()]):
            break
        run.append(before)
    return list(dict.fromkeys(tag[1].strip() for tag in reversed(run)))


def answer_text(completion: str) -> str:
    """The committed answer of a short text: last answer tag, else last box, else all that is said."""
    said = after_thinking(until_stop(completion or ""))
    if said is None:
        return ""
    tags = last_tags(said)
    if tags:
        said = ", ".join(tags)
    box = last_box(said)
    return box if box is not None else said


def boxes(text: str) -> list[tuple[int, int, str | None]]:
    r"""Every ``\boxed{...}`` (``\fbox``, ``\framebox``, ``\boxed 5`` too): start, end, content (None = broken)."""
    found: list[tuple[int, int, str | None]] = []
    position = 0
    for match in _BOX.finditer(text):
        if match.start() < position:
            continue  # inside the one before
        start, end, content = _box_at(text, match)
        if content is not None or text[match.end() : match.end() + 1] == "{":
            found.append((start, end, content))
            position = end
    return found


_BRACE = re.compile(r"\\.|[{}]", re.DOTALL)  # an escaped one is no brace
_BOX = re.compile(r"\\(?:boxed|fbox|framebox)(?![a-zA-Z])\s*")


def _box_at(text: str, match: re.Match[str]) -> tuple[int, int, str | None]:
    start, here = match.start(), match.end()
    if text[here : here + 1] != "{":
        bare = re.compile(r"[-+]?\d[\d.,]*\d|[-+]?\w").match(text, here)
        blank = here > match.start() and text[here - 1].isspace()
        return (
            (start, bare.end(), bare[0]) if bare and blank and text[here : here + 1].isdigit() else (start, here, None)
        )
    end = closing_brace(text, here)
    return (start, end, text[here + 1 : end - 1]) if end else (start, len(text), None)


def closing_brace(text: str, start: int) -> int | None:
    """The index just after the brace that closes ``text[start]``, or None."""
    depth = 0
    for mark in _BRACE.finditer(text, start):
        if mark[0] == "{":
            depth += 1
        elif mark[0] == "}":
            depth -= 1
            if depth == 0:
                return mark.end()
    return None


def last_box(text: str) -> str | None:
    """The content of the last box, or None when there is none or it is broken."""
    found = boxes(text)
    return found[-1][2] if found else None


# Between two answers: marks, the number of a list's item, words that join alternatives; or a hedge in one sentence.
_JOINED = re.compile(
    r"(?:[^\w\\=+]|_|(?<!\d)\d{1,2}[.):]|(?<![^\W_])[a-hivxA-H]{1,3}[.)]"
    r"|\\(?:[()\[\]\\,;:! ]|(?:quad|qquad|lor|vee|cup|text|textbf|to|rightarrow)(?![a-zA-Z]))"
    r"|(?<![^\W_])(?:case|option|part|possibility|candidate|answer|solution)\s*\(?(?:\d{1,2}|[a-hA-H]|[ivx]{1,4})\)?(?![^\W_])"
    r"|(?<![^\W_])(?:and|or|vs|else|either|also|alternatively|maybe|perhaps|possibly)(?![^\W_])|或者?|和|及)*"
    r"|[^.!?\n]*\b(?:might|may|maybe|perhaps|possibly|could|alternatively|or)\b[^.!?\n]*",
    re.IGNORECASE,
)
MAX_BETWEEN = 200


def _side_by_side(between: str) -> bool:
    return len(between) <= MAX_BETWEEN and _JOINED.fullmatch(between) is not None


_DENIED = re.compile(  # right before a box: it is not, the answer isn't
    r"(?:(?<![^\W_])(?:not|never|cannot|nicht|n'est\s+pas|no\s+es|non\s+è|não\s+é|не)|n't|不是|并非|\\(?:ne|neq|not\s*=))"
    r"(?:\s+(?:be|equals?|to|simply|just|say|claim|conclude|accept|the\s+answer))*[\s$*(:]*$",
    re.IGNORECASE,
)


_DOUBT = re.compile(  # right behind it: is that right? no, wait
    r"[\s$*]*(?:\\[\])][\s$*]*)?(?:\?|(?:\{\})?\^\{?\d|(?:[,.;(–—-]\s*)?(?:(?:(?:but|wait|no|hmm+|actually|oops|sorry)\b[\s,.]*)*"
    r"(?:(?:(?:that|this|it)\s+)?(?:is|was|would\s+be|must\s+be)|(?:that|it)'s)"
    r"\s+(?:incorrect|wrong|false|not\s+(?:correct|right|the\s+(?:final\s+)?answer))"
    r"|(?:no,?\s+wait|wait,?\s+no|no,?\s+actually|actually,?\s+no|scratch\s+that|correction)\b))",
    re.IGNORECASE,
)


def last_boxes(text: str) -> list[str]:
    """The last box and those side by side with it; empty when the last is broken, denied or doubted.

    ``\\boxed{1} \\boxed{2}`` is a list of two; in ``\\boxed{1}. Wait, it is \\boxed{2}`` the last one stands alone.
    """
    found = boxes(text)
    if not found or found[-1][2] is None or not found[-1][2].strip():
        return []
    start, end, _ = found[-1]
    if _DENIED.search(text[max(0, start - 60) : start]) or _DOUBT.match(text, end):
        return []
    run = [found[-1]]
    for before in reversed(found[:-1]):
        if before[2] is None or not _side_by_side(text[before[1] : run[0][0]]):
            break
        run.insert(0, before)
    return list(dict.fromkeys(content or "" for _, _, content in run))
