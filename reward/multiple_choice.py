"""One committed option letter, in any common dressing, or an option's text when the options are known."""

from __future__ import annotations

import re
from collections.abc import Mapping
from itertools import islice
from typing import Any

from reward.protocol import Example
from reward.text import after_thinking, boxes, fold, last_boxes, last_tags, squash, until_stop, visible
from reward.verdict import Verdict

_OPEN = r"(?:[*_`\"'“‘\[{(<（【$]|\\[({\[]|\\(?:textbf|textrm|text|mathbf|mathrm|boldsymbol|mbox)\s*\{|\\boxed\s*\{)"
_CLOSE = r"(?:[*_`\"'”’\]})>）】$]|\\[)}\]])"
_ENDS = r"(?![^\W\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]|['’]\w)"  # a letter that no word goes on from, C是 included
_LETTER = rf"(?:{_OPEN}\s*)*(?P<letter>[A-Ja-j]){_ENDS}(?:\s*{_CLOSE})*"
_OR = r"(?:[oO]r|ou?|oder|или|або|hoặc|atau|veya|lub|eller|または|또는|或者?)"
_AND = r"(?:and|[eyи&+、和與与]|et|und|dan|och|oraz|と|와|과)"
_OPTION_WORD = (
    r"(?:(?:the|la|el|le|die|der|de|a|o)\s+(?=[*({\[]*[A-J]\b(?!\s+\w)))?"
    r"(?:(?:the\s+|la\s+|el\s+|die\s+|a\s+|l')?(?:option|choice|letter|answer|alternative|statement|opci[óo]n|opção|lettre|letra"
    r"|lettera|réponse|respuesta|antwort|alternativa|risposta|resposta|вариант|选项|选)\s*:?\s*)?"
)
_ANCHOR = re.compile(
    r"(?:(?:final|correct|best|right|most\s+(?:appropriate|likely))\s+)*(?:answers?|ans|choice|option)\b[\"'”]?\.?\s*(?:letter\s*)?(?:\*\*)?\s*"
    r"(?:is|are|seems\s+to\s+be|appears\s+to\s+be|would\s+be|should\s+be|must\s+be|will\s+be|:|：|=|is\s*:|[-–—](?=\s*[*(]{0,3}[A-J]\b))\s*(?:therefore|thus|clearly|simply)?\s*:?"
    r"(?:\s*not\s+\(?[A-J]\)?,?\s*but\b(?:\s+rather)?)?"
    r"|(?:正[确確]|最[终終]|最佳)?(?:答案|[选選][项項])\s*(?:应该|應該|应|就)?\s*(?:不是\s*[A-J]\s*[,，]?\s*而是|是|[为為]|选|：|:)+"
    r"|(?:故|应|應|所以|因此|本题|本題|我)[选選]\s*[:：]?|[选選][择擇]"
    r"|(?:antwort|respuesta|opci[óo]n|opção|réponse|reponse|resposta|risposta|ответ|antwoord|jawaban|cevap|odpowied[źz]|відповідь|svar|alternativa|đáp\s+án)"
    r"(?:\s+(?!no\b|nicht\b|n\b|não\b|non\b|не\b)\w+)?\s*(?:ist|est|es|é|è|:|：|is|adalah|to|là|[-–—])(?!\w)"
    r"(?:\s*(?:donc|alors|entonces|pues|also|daher|somit|portanto|quindi|dunque)\b)?(?:\s*nicht\s+\(?[A-J]\)?,?\s*sondern\b)?"
    r"|(?:respuesta|opci[óo]n|opção|réponse|reponse|resposta|risposta|alternativa)(?:\s+\w+)?\s+(?:no\s+es|n['’]est\s+pas|não\s+é|non\s+è)"
    r"\s+(?:(?:la|l['’]|a)\s*)?(?:(?:opci[óo]n|opção|option|opzione)\s+)?\(?[A-J]\)?,?\s*(?:sino|mais|mas|e\s+sim|ma|bensì)\b"
    r"|(?:الإجابة|الجواب)(?:\s+\w+)?\s*(?:هي|هو|:)|(?:答え|こたえ|解答|正解)\s*(?:は|：|:)|(?:정답|답)\s*(?:은|는|:|：)"
    r"|^[#* \t]{0,20}(?:final\s+|correct\s+)?answer[*\s]*:?[*\s]*$|^\s*####|^[*\s]*(?:correct|final)\s*:",
    re.IGNORECASE | re.MULTILINE,
)
_CONCLUDES = re.compile(
    r"(?:\bgo(?:ing)?\s+with|\bchoose|\bpick|\bselect|\bmust\s+be|\bhas\s+to\b\s+be|\bshould\s+be|\bit\s+is|\bit's|\banswer|\bso|\bthus"
    r"|\btherefore|\bhence|\bthen|\bconclude|\bleaves(?:\s+us\s+with)?|\bis)\s*,?\s*(?:only\s+)?(?:\s*:)?",
    re.IGNORECASE,
)
_CAPITAL = _LETTER.replace("letter", "capital").replace("A-Ja-j", "A-J")
_IS_CORRECT = re.compile(
    rf"(?:\b(?i:option|choice)\s+{_LETTER}|(?<![A-Za-z0-9_-]){_CAPITAL})"
    r"(?:\s+is\s+(?:the\s+)?(?:correct|right|best|most\s+(?:likely|appropriate))\b(?!\s+(?:if|when|only|except))|\s+(?:remains|is\s+left)\b"
    r"|\s*(?:选项|選項)?(?:是)?正[确確])"
)
_NAMED = re.compile(
    r"[(\[（【]?([A-Ja-j])[)\]）】]?\s*(?:[:：,、)]|[-–—](?=\s)|\.(?=\s|[A-Z]?[a-z]{2})|\)\s)\s*(.+)", re.DOTALL
)
_ALONE = re.compile(r"\s*[*_]{0,2}[(\[]?[A-J][)\]]?\.?[*_]{0,2}\s*")  # a letter with a line of its own
_TAKEN_BACK = re.compile(
    r"\b(?:no,?\s+wait|wait,?\s+no)\b|\b(?:wait|actually|hmm+|correction|no)\s*[,:.…-]", re.IGNORECASE
)
_NEXT_LETTER = re.compile(rf"[\s,]*(?:(?:clearly|definitely|therefore|thus)\s+)?{_OPTION_WORD}{_LETTER}", re.IGNORECASE)
_BESIDE = re.compile(r"[\s*)\]}]*[).:,-]+\s*([^\n]+)")  # what stands behind a letter
_RIVAL = re.compile(  # B, maybe C; B (but C is also possible)
    r"\b(?:(?i:maybe|perhaps|possibly|alternatively)|(?:could|might|may)\s+(?:also\s+)?be)\s+(?:\w+\s+){0,2}[*(\[]*(?P<named>[A-J])(?![\w'’])"
    r"|(?<!\w)(?P<claimed>[A-J])[*)\]]*\s+(?:(?:(?:is|are|could|might|may|would)\s+)?(?:also|equally)\s+(?:be\s+)?"
    r"(?:possible|plausible|correct|right|acceptable|valid|fine)|(?:could|might|may)\s+be\s+(?:possible|correct|right|acceptable|valid))\b"
)
_IF_OPTION = re.compile(r"\b(?i:if)\s+(?:option\s+)?[(]?[A-J][)]?\s")
_ANOTHER = re.compile(r"(?:^|[\s,;])[(\[]?[A-J](?:[)\]]|[.:](?=\s))")  # the next of a list of options
_CONDITION = re.compile(r"\s*,?\s*(?:if|when|unless|provided|assuming|only\s+if)\b", re.IGNORECASE)
_SUPPOSED = re.compile(  # right before an announcement
    r"\b(?:if|whether|suppos\w+|assum\w+|imagine)\s+(?:that\s+)?(?:the\s+(?:answer\s+)?)?$", re.IGNORECASE
)
_EXAMPLE = re.compile(  # an announcement in quotes, of the form that was asked for
    r"\b(?:such\s+as|like|format|form|line|template|e\.g\.|saying|write|instructions?[^.\n]{0,40})[\s:,]*['\"‘“`]$",
    re.IGNORECASE,
)
_HEDGED_CLAIM = re.compile(r"\b(?:not|never|if|whether|nobody)\b|n't\b", re.IGNORECASE)
_NOT_WRONG = r"(?!\W*\s(?:is|are)\s+(?:wrong|incorrect|false|not)\b)"  # B and C is wrong
_DOUBTFUL = (
    r"(?:maybe|perhaps|possibly|alternatively|vs\.?|versus|(?:less\s+|more\s+)?likely|is\s+it|else"
    r"|tal\s+vez|quizás|peut-être|vielleicht)"
)
_JOINER = rf"(?:[,/|]|(?:{_DOUBTFUL}|also|as\s+well\s+as|plus|then)\b|\b{_OR}(?![a-z])|{_AND}(?![a-z]))"
_GUESSED = re.compile(rf"(?<![A-Za-z])(?:{_OR}|{_DOUBTFUL})(?![A-Za-z])|\|")
_SEVERAL = re.compile(
    rf"\s*(?:[;(]\s*|\.\.\.\s*|\.\s*(?=Or\b))?(?:{_JOINER}\s*)+(?:option\s+)?[*(\[{{\"']*[A-J]{_ENDS}{_NOT_WRONG}"
)
_DENIES = re.compile(r"\W*\s(?:is|was)\s+(?:wrong|incorrect|false|not)\b", re.IGNORECASE)
_NEGATED = re.compile(
    r"(?:\bnot|n't|\bnever|\bneither|\bexcept|\bincorrect|\bwrong|不是|并非)\s*(?:\w+\s+){0,1}[(*\"']*$", re.IGNORECASE
)
_HEDGE = re.compile(
    r"\b(?:might|maybe|perhaps|possibly|could\s+(?:be|answer|choose|pick|say)|not\s+sure|cannot\s+decide|either)\b|\?",
    re.IGNORECASE,
)
_TURN = re.compile(r"\n\s*(?:question|problem|user|human|q)\s*\d*\s*:|<\|im_start\|>|\[INST\]", re.IGNORECASE)
_STATEMENTS = re.compile(r"[ivx]+(?:(?:\W|\band\b)+[ivx]+)*")  # by their numbers: I, III and IV
_MORE = r"(?:\W|and\b)+[ivx]+\b"
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
            stated = not self._boxed_only and _ANCHOR.search(after)
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
        anchors = list(_ANCHOR.finditer(said))
        for anchor in reversed(anchors):
            found = _announcement(said, anchor, options)
            if found is None:
                return frozenset()
            before = said[max(0, anchor.start() - 80) : anchor.start()]
            if found and not _unmeant(before) and not _hedged(_sentence(said, anchor.start()), options):
                return found
        alone = {line.strip("*_ .()[]").upper() for line in said.splitlines() if _ALONE.fullmatch(line)}
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
    plain = re.sub(rf"^{_OPTION_WORD}", "", plain, flags=re.IGNORECASE).strip()
    if re.fullmatch(r"[(\[<（【]{0,2}\s*[A-Ja-j]\s*[)\]>）】]{0,2}[.:]?", plain):
        return frozenset(re.findall(r"[A-Ja-j]", plain.upper()))
    named = _NAMED.fullmatch(plain)
    if named and _by_text(named[2], options) == {named[1].upper()}:
        return frozenset([named[1].upper()])
    if spelled := _by_text(content, options) or _by_text(plain, options):
        return spelled
    several = re.fullmatch(rf"[(\[]?[A-J][)\]]?(?:\s*(?:[,/;\s]|{_OR}|{_AND})\s*[(\[]?[A-J][)\]]?)+", plain)
    if several or re.fullmatch(r"[A-J]{2,5}", plain):
        return _selected(re.findall(r"[A-J]", plain), plain)
    if (
        named
        and len(plain) < 400
        and not _ANOTHER.search(named[2])
        and not _TAKEN_BACK.search(named[2])
        and not _has_rival(named[1], named[2])
        and not _SEVERAL.match(named[2])
        and not re.match(r"(?:[(\[]?[A-J][)\]]?\s*(?:,|or\b|and\b))", named[2])
    ):
        return _named(named[1].upper(), named[2], options)
    return frozenset()


def _selected(letters: list[str], joined: str) -> frozenset[str]:
    """Letters joined by "or" are one guess, which no gold equals; others are a selection."""
    return frozenset([" or ".join(letters)] if len(letters) > 1 and _GUESSED.search(joined) else letters)


def _has_rival(letter: str, after: str) -> bool:
    return any((rival["named"] or rival["claimed"]) != letter.upper() for rival in _RIVAL.finditer(after))


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
    ends = {text: rf"(?!\w|{_MORE})" if _STATEMENTS.fullmatch(text) else r"(?!\w)" for _, text in plain}
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
    match = _NEXT_LETTER.match(said, anchor.end())
    if match is None:
        sentence = re.split(r"(?<=\w)\.(?:\s|$)", line)[0]
        together = re.fullmatch(r"[A-J]{2,5}", sentence.strip(" *.。"))  # 答案：AC
        return spelled or (frozenset(together[0]) if together else _by_text(sentence, options))
    letter, after = match["letter"], said[match.end() :].split("\n")[0]
    beside = _BESIDE.match(said, match.end("letter"))
    # "I, III, IV" may be an option: then it isn't I beside another one's text
    contradicted = beside and not spelled and not _named(letter.upper(), beside[1].rstrip(" .*"), options)
    conditional = _CONDITION.match(after) or _IF_OPTION.search(_sentence(said, anchor.start()))
    if contradicted or conditional or _DENIES.match(after) or _taken_back(letter, after) or _has_rival(letter, after):
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
    while (more := _SEVERAL.match(after)) is not None:
        letters.append(more[0].strip(" *()[]{}\"'")[-1].upper())
        after = after[more.end() :].lstrip("*)]}\"'")
    beside = _BESIDE.match(text, match.end("letter"))
    if len(letters) == 1 and beside:
        return _named(letters[0], beside[1].rstrip(" .*"), options)
    return _selected(letters, text[start : len(text) - len(after)])


def _taken_back(letter: str, after: str) -> bool:
    """C... wait, D: another letter behind a word of doubt."""
    back = _TAKEN_BACK.search(after)
    others = re.findall(r"(?<!\w)[B-HJ](?!\w)|(?<!\w)A(?=\W*$)", after[back.end() :]) if back else []
    return any(other != letter.upper() for other in others)


def _concluded(said: str, options: Mapping[str, str]) -> frozenset[str]:
    """Without an announcement: the letter of the last sentence that concludes with one and denies none of it."""
    for sentence in reversed(
        [part for part in re.split(r"(?<=[a-zA-Z)*])[.!](?:\s+|$)|\n+|。", said) if part and part.strip()]
    ):
        if _hedged(sentence, options):
            return frozenset()
        for match in reversed(list(_CONCLUDES.finditer(sentence))):
            found = re.compile(rf"\s*{_OPTION_WORD}{_LETTER}", re.IGNORECASE).match(sentence, match.end())
            doubted = _NEGATED.search(sentence[: found.start("letter")]) if found else None
            if found and not doubted and not _unmeant(sentence[: match.start()]):
                chosen = _committed(found, sentence, options)
                if chosen:
                    return chosen
        correct = _IS_CORRECT.search(sentence)
        if correct and not _HEDGED_CLAIM.search(sentence[: correct.start()]):
            return frozenset([(correct["letter"] or correct["capital"]).upper()])
    return frozenset()


def _unmeant(before: str) -> bool:
    """Whether what follows is only supposed, or quoted as the form to answer in."""
    return bool(_SUPPOSED.search(before) or _EXAMPLE.search(before))


def _hedged(sentence: str, options: Mapping[str, str]) -> bool:
    """Whether doubt is expressed; a word that is itself an option (yes, no, maybe) is no doubt."""
    return any(fold(doubt[0]) not in map(fold, options.values()) for doubt in _HEDGE.finditer(sentence))


def _sentence(text: str, at: int) -> str:
    start = max(text.rfind(". ", 0, at), text.rfind("\n", 0, at)) + 1
    ends = [end for end in (text.find(". ", at), text.find("\n", at)) if end >= 0]
    return text[start : min(ends, default=len(text))]


def _this_turn(text: str) -> str:
    for turn in islice(_TURN.finditer(text), MAX_TURNS):
        before = text[: turn.start()]
        if _ANCHOR.search(before) or boxes(before):
            return before
    return text
