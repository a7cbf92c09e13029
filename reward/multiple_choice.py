"""One committed option letter, in any common dressing, or an option's text when the options are known."""

from __future__ import annotations

import re
from collections.abc import Mapping
from itertools import islice
from typing import Any

from reward import choice_patterns as patterns
from reward.protocol import Example
from reward.text import after_thinking, boxes, fold, last_boxes, last_tags, squash, until_stop, visible
from reward.verdict import Verdict

MAX_TURNS = 20
TAIL = 4000


class MultipleChoiceVerifier:
    """Judges the last committed letter: answer tag, else last box, else the last "answer is X", else a conclusion.

    Gold: ``example["answer_idx"]`` if present, else ``example["answer"]``: one letter A-J, several for multi-select
    ("A,C"), or an option's text when ``example["options"]`` (a mapping or a list) is there. Case is free; a letter
    that is part of a word, the pronoun I and the article a never count; two letters for a one-letter gold are wrong.

    Args:
        boxed_only: AlphaMed's rule: only the last box is read.
    """

    name = "multiple_choice"
    reads = frozenset[str]()

    def __init__(self, *, boxed_only: bool = False) -> None:
        self._boxed_only = boxed_only

    def verify(self, completion: str, example: Example) -> Verdict:
        options = options_of(example)
        gold = self._gold(example, options)
        if gold is None:
            return Verdict.abstain("bad_gold", f"answer {_raw_gold(example)!r:.80} is no option letter")
        said = after_thinking(until_stop(completion or ""))
        chosen = None if said is None else self._chosen(_this_turn(visible(squash(said)))[-TAIL * 4 :], options)
        if not chosen:
            return Verdict.wrong(reason="unparsed", detail="no committed option")
        shown = ",".join(sorted(chosen))
        return Verdict.right(shown) if chosen == gold else Verdict.wrong(shown)

    def check_gold(self, example: Example) -> Verdict:
        """Right when the gold names an option that exists."""
        options = options_of(example)
        gold = self._gold(example, options)
        if gold is None or (options and not gold <= options.keys()):
            return Verdict.abstain("bad_gold", f"answer {_raw_gold(example)!r:.80} is none of {sorted(options)}")
        return Verdict.right(",".join(sorted(gold)))

    def _gold(self, example: Example, options: Mapping[str, str]) -> frozenset[str] | None:
        raw = _raw_gold(example)
        if not isinstance(raw, str) or not raw.strip():
            return None
        letters = re.fullmatch(r"\s*\(?[A-Z]\)?\.?(?:\s*[,;/&]?\s*(?:and\s+)?[A-Z])*\s*", raw)
        if letters:
            return frozenset(re.findall(r"[A-Z]", raw))
        matching = [letter for letter, text in options.items() if fold(text) == fold(raw)]
        return frozenset(matching) if len(matching) == 1 else None

    def _chosen(self, said: str, options: Mapping[str, str]) -> frozenset[str]:
        tags = last_tags(said)
        if tags and not self._boxed_only:
            inner = ", ".join(tags)
            return (
                self._from_box(inner, options)
                if boxes(inner)
                else letters_of(inner, options) or self._announced(inner, options)
            )
        if found := boxes(said):
            after = said[found[-1][1] :]
            stated = not self._boxed_only and patterns.ANCHOR.search(after)
            return (self._announced(after, options) if stated else frozenset()) or self._from_box(said, options)
        return frozenset() if self._boxed_only else self._announced(said, options)

    def _from_box(self, text: str, options: Mapping[str, str]) -> frozenset[str]:
        chosen = [letters_of(content, options) for content in last_boxes(text)]
        return frozenset().union(*chosen) if chosen and all(chosen) else frozenset()

    def _announced(self, said: str, options: Mapping[str, str]) -> frozenset[str]:
        """The last announcement that is followed by a letter; else a bare answer; else the last conclusion."""
        said = said[-TAIL:]
        bare = letters_of(said, options)
        if bare:
            return bare
        anchors = list(patterns.ANCHOR.finditer(said))
        for anchor in reversed(anchors):
            found = _announcement(said, anchor, options)
            if found is None:
                return frozenset()
            before = said[max(0, anchor.start() - 80) : anchor.start()]
            if found and not _unmeant(before) and not _hedged(_sentence(said, anchor.start()), options):
                return found
        alone = {line.strip("*_ .()[]").upper() for line in said.splitlines() if patterns.ALONE.fullmatch(line)}
        return frozenset(alone) if len(alone) == 1 else _concluded(said, options)


def _raw_gold(example: Example) -> Any:
    return example.get("answer_idx") or example.get("answer")


def options_of(example: Example) -> dict[str, str]:
    """Letter to text; a list is lettered from A."""
    options = example.get("options")
    if isinstance(options, Mapping):
        return {str(letter).strip().upper(): str(text) for letter, text in options.items()}
    if isinstance(options, (list, tuple)):
        return {chr(ord("A") + index): str(text) for index, text in enumerate(options)}
    return {}


def letters_of(content: str, options: Mapping[str, str]) -> frozenset[str]:
    """A short content as a choice: a letter alone, a letter and its option's text, several letters, or a text alone."""
    content = content.strip()
    plain = re.sub(r"\\(?:textbf|textrm|text|mathbf|mathrm|boldsymbol|mbox)\s*", "", content)
    plain = re.sub(r"[\\{}$*_`\"'“”‘’]", " ", plain).strip(" .,;:!。")
    plain = re.sub(r"^(?:=+>|⇒|→|Rightarrow\b)\s*", "", plain)
    plain = re.sub(rf"^{patterns.OPTION_WORD}", "", plain, flags=re.IGNORECASE).strip()
    if re.fullmatch(r"[(\[<（【]{0,2}\s*[A-Ja-j]\s*[)\]>）】]{0,2}[.:]?", plain):
        return frozenset(re.findall(r"[A-Ja-j]", plain.upper()))
    named = patterns.NAMED.fullmatch(plain)
    if named and _by_text(named[2], options) == {named[1].upper()}:
        return frozenset([named[1].upper()])
    if spelled := _by_text(content, options) or _by_text(plain, options):
        return spelled
    several = re.fullmatch(
        rf"[(\[]?[A-J][)\]]?(?:\s*(?:[,/;\s]|{patterns.OR}|{patterns.AND})\s*[(\[]?[A-J][)\]]?)+", plain
    )
    if several or re.fullmatch(r"[A-J]{2,5}", plain):
        return _selected(re.findall(r"[A-J]", plain), plain)
    if (
        named
        and len(plain) < 400
        and not patterns.ANOTHER.search(named[2])
        and not patterns.TAKEN_BACK.search(named[2])
        and not _has_rival(named[1], named[2])
        and not patterns.SEVERAL.match(named[2])
        and not re.match(r"(?:[(\[]?[A-J][)\]]?\s*(?:,|or\b|and\b))", named[2])
    ):
        return _named(named[1].upper(), named[2], options)
    return frozenset()


def _selected(letters: list[str], joined: str) -> frozenset[str]:
    """Letters joined by "or" are one guess, which no gold equals; others are a selection."""
    return frozenset([" or ".join(letters)] if len(letters) > 1 and patterns.GUESSED.search(joined) else letters)


def _has_rival(letter: str, after: str) -> bool:
    return any((rival["named"] or rival["claimed"]) != letter.upper() for rival in patterns.RIVAL.finditer(after))


def _named(letter: str, text: str, options: Mapping[str, str]) -> frozenset[str]:
    """Letter with a text: the text of another option beside it is a contradiction, not an answer."""
    other = _by_text(text, options)
    return frozenset() if other and other != {letter} else frozenset([letter])


def _by_text(text: str, options: Mapping[str, str]) -> frozenset[str]:
    folded = _folded(text)
    matching = [letter for letter, option in options.items() if _folded(option) == folded]
    return frozenset(matching) if folded and len(matching) == 1 else frozenset()


def _folded(text: str) -> str:
    """A text without LaTeX, quotes and emphasis, as it may stand in an answer."""
    return fold(re.sub(r"\\(?:textbf|textrm|text|mathbf|mathrm|boldsymbol|mbox)\b|[\\{}$*_`\"'“”‘’]", " ", text))


def _spelled(line: str, options: Mapping[str, str]) -> frozenset[str]:
    """The option whose text opens the line, the longest if several do; with the alternatives named right after it."""
    said, texts = _folded(line), [(letter, _folded(text)) for letter, text in options.items()]
    plain = [(letter, text) for letter, text in texts if len(text) > 1 or text.isdigit()]  # no text that is a letter
    ends = {text: rf"(?!\w|{patterns.MORE})" if patterns.STATEMENTS.fullmatch(text) else r"(?!\w)" for _, text in plain}
    starting = [(len(text), letter) for letter, text in plain if re.match(re.escape(text) + ends[text], said)]
    length, chosen = max(starting, default=(0, ""))
    if [size for size, _ in starting].count(length) != 1:
        return frozenset()
    letters = {chosen}
    for letter, text in texts:
        also = rf"\W*(?:\bor\b|\band\b|[,/;&])\W*(?:or\W+|and\W+)?{re.escape(text)}\s*(?:$|[.,;/]|or\b|and\b)"
        if re.match(also, said[length:]):
            letters.add(letter)
    return frozenset(letters)


def _announcement(said: str, anchor: re.Match[str], options: Mapping[str, str]) -> frozenset[str] | None:
    """The choice behind an announcement, empty when none follows; None when it is taken back.

    Taken back: under a condition, corrected in the same line, or a letter beside another option's text.
    """
    line = said[anchor.end() : anchor.end() + 500].strip(" \t\n*_:").split("\n")[0]
    spelled = _spelled(line, options)
    match = patterns.NEXT_LETTER.match(said, anchor.end())
    if match is None:
        sentence = re.split(r"(?<=\w)\.(?:\s|$)", line)[0]
        together = re.fullmatch(r"[A-J]{2,5}", sentence.strip(" *.。"))  # 答案：AC
        return spelled or (frozenset(together[0]) if together else _by_text(sentence, options))
    letter, after = match["letter"], said[match.end() :].split("\n")[0]
    beside = patterns.BESIDE.match(said, match.end("letter"))
    # "I, III, IV" may be an option: then it isn't I beside another one's text
    contradicted = beside and not spelled and not _named(letter.upper(), beside[1].rstrip(" .*"), options)
    conditional = patterns.CONDITION.match(after) or patterns.IF_OPTION.search(_sentence(said, anchor.start()))
    if (
        contradicted
        or conditional
        or patterns.DENIES.match(after)
        or _taken_back(letter, after)
        or _has_rival(letter, after)
    ):
        return None
    return spelled or _committed(match, said, options)


def _committed(match: re.Match[str], text: str, options: Mapping[str, str]) -> frozenset[str]:
    """The matched letter, unless more letters or a word follow that make it something else."""
    letter, after = match["letter"], text[match.end() :]
    dressed = match[0].rstrip()[-1:] != letter
    goes_on = re.match(r"\s+[\w(]", after) and not re.match(r"\s+(?:because|since|as|for|or|and)\b", after)
    if not dressed and goes_on and (letter in "aI" or letter.islower()):
        return frozenset()  # "a common cause", "I think"; a capital A may go on: "A is right"
    if (
        not dressed
        and letter == "A"
        and re.match(r"\s+(?:[a-z]{3,}|\d+-[a-z])", after)
        and not re.match(r"\s+(?:because|since|for|and|rather|instead|while|whereas|although|though)\b", after)
    ):
        return frozenset()
    letters, start = [letter.upper()], match.end("letter")
    while (more := patterns.SEVERAL.match(after)) is not None:
        letters.append(more[0].strip(" *()[]{}\"'")[-1].upper())
        after = after[more.end() :].lstrip("*)]}\"'")
    beside = patterns.BESIDE.match(text, match.end("letter"))
    if len(letters) == 1 and beside:
        return _named(letters[0], beside[1].rstrip(" .*"), options)
    return _selected(letters, text[start : len(text) - len(after)])


def _taken_back(letter: str, after: str) -> bool:
    """C... wait, D: another letter behind a word of doubt."""
    back = patterns.TAKEN_BACK.search(after)
    others = re.findall(r"(?<!\w)[B-HJ](?!\w)|(?<!\w)A(?=\W*$)", after[back.end() :]) if back else []
    return any(other != letter.upper() for other in others)


def _concluded(said: str, options: Mapping[str, str]) -> frozenset[str]:
    """Without an announcement: the letter of the last sentence that concludes with one and denies none of it."""
    for sentence in reversed(
        [part for part in re.split(r"(?<=[a-zA-Z)*])[.!](?:\s+|$)|\n+|。", said) if part and part.strip()]
    ):
        if _hedged(sentence, options):
            return frozenset()
        for match in reversed(list(patterns.CONCLUDES.finditer(sentence))):
            found = re.compile(rf"\s*{patterns.OPTION_WORD}{patterns.LETTER}", re.IGNORECASE).match(
                sentence, match.end()
            )
            doubted = patterns.NEGATED.search(sentence[: found.start("letter")]) if found else None
            if found and not doubted and not _unmeant(sentence[: match.start()]):
                chosen = _committed(found, sentence, options)
                if chosen:
                    return chosen
        correct = patterns.IS_CORRECT.search(sentence)
        if correct and not patterns.HEDGED_CLAIM.search(sentence[: correct.start()]):
            return frozenset([(correct["letter"] or correct["capital"]).upper()])
    return frozenset()


def _unmeant(before: str) -> bool:
    """Whether what follows is only supposed, or quoted as the form to answer in."""
    return bool(patterns.SUPPOSED.search(before) or patterns.EXAMPLE.search(before))


def _hedged(sentence: str, options: Mapping[str, str]) -> bool:
    """Whether doubt is expressed; a word that is itself an option (yes, no, maybe) is no doubt."""
    return any(fold(doubt[0]) not in map(fold, options.values()) for doubt in patterns.HEDGE.finditer(sentence))


def _sentence(text: str, at: int) -> str:
    start = max(text.rfind(". ", 0, at), text.rfind("\n", 0, at)) + 1
    ends = [end for end in (text.find(". ", at), text.find("\n", at)) if end >= 0]
    return text[start : min(ends, default=len(text))]


def _this_turn(text: str) -> str:
    for turn in islice(patterns.TURN.finditer(text), MAX_TURNS):
        before = text[: turn.start()]
        if patterns.ANCHOR.search(before) or boxes(before):
            return before
    return text
