"""How a choice among lettered options is announced, dressed, joined, doubted, denied and taken back."""

from __future__ import annotations

import re

OPEN = r"(?:[*_`\"'“‘\[{(<（【$]|\\[({\[]|\\(?:textbf|textrm|text|mathbf|mathrm|boldsymbol|mbox)\s*\{|\\boxed\s*\{)"
CLOSE = r"(?:[*_`\"'”’\]})>）】$]|\\[)}\]])"
ENDS = r"(?![^\W\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]|['’]\w)"  # a letter that no word goes on from, C是 included
LETTER = rf"(?:{OPEN}\s*)*(?P<letter>[A-Ja-j]){ENDS}(?:\s*{CLOSE})*"
OR = r"(?:[oO]r|ou?|oder|или|або|hoặc|atau|veya|lub|eller|または|또는|或者?)"
AND = r"(?:and|[eyи&+、和與与]|et|und|dan|och|oraz|と|와|과)"
OPTION_WORD = (
    r"(?:(?:the|la|el|le|die|der|de|a|o)\s+(?=[*({\[]*[A-J]\b(?!\s+\w)))?"
    r"(?:(?:the\s+|la\s+|el\s+|die\s+|a\s+|l')?(?:option|choice|letter|answer|alternative|statement|opci[óo]n|opção|lettre|letra"
    r"|lettera|réponse|respuesta|antwort|alternativa|risposta|resposta|вариант|选项|选)\s*:?\s*)?"
)
ANCHOR = re.compile(
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
CONCLUDES = re.compile(
    r"(?:\bgo(?:ing)?\s+with|\bchoose|\bpick|\bselect|\bmust\s+be|\bhas\s+to\b\s+be|\bshould\s+be|\bit\s+is|\bit's|\banswer|\bso|\bthus"
    r"|\btherefore|\bhence|\bthen|\bconclude|\bleaves(?:\s+us\s+with)?|\bis)\s*,?\s*(?:only\s+)?(?:\s*:)?",
    re.IGNORECASE,
)
CAPITAL = LETTER.replace("letter", "capital").replace("A-Ja-j", "A-J")
IS_CORRECT = re.compile(
    rf"(?:\b(?i:option|choice)\s+{LETTER}|(?<![A-Za-z0-9_-]){CAPITAL})"
    r"(?:\s+is\s+(?:the\s+)?(?:correct|right|best|most\s+(?:likely|appropriate))\b(?!\s+(?:if|when|only|except))|\s+(?:remains|is\s+left)\b"
    r"|\s*(?:选项|選項)?(?:是)?正[确確])"
)
NAMED = re.compile(
    r"[(\[（【]?([A-Ja-j])[)\]）】]?\s*(?:[:：,、)]|[-–—](?=\s)|\.(?=\s|[A-Z]?[a-z]{2})|\)\s)\s*(.+)", re.DOTALL
)
ALONE = re.compile(r"\s*[*_]{0,2}[(\[]?[A-J][)\]]?\.?[*_]{0,2}\s*")  # a letter with a line of its own
TAKEN_BACK = re.compile(
    r"\b(?:no,?\s+wait|wait,?\s+no)\b|\b(?:wait|actually|hmm+|correction|no)\s*[,:.…-]", re.IGNORECASE
)
NEXT_LETTER = re.compile(rf"[\s,]*(?:(?:clearly|definitely|therefore|thus)\s+)?{OPTION_WORD}{LETTER}", re.IGNORECASE)
BESIDE = re.compile(r"[\s*)\]}]*[).:,-]+\s*([^\n]+)")  # what stands behind a letter
RIVAL = re.compile(  # B, maybe C; B (but C is also possible)
    r"\b(?:(?i:maybe|perhaps|possibly|alternatively)|(?:could|might|may)\s+(?:also\s+)?be)\s+(?:\w+\s+){0,2}[*(\[]*(?P<named>[A-J])(?![\w'’])"
    r"|(?<!\w)(?P<claimed>[A-J])[*)\]]*\s+(?:(?:(?:is|are|could|might|may|would)\s+)?(?:also|equally)\s+(?:be\s+)?"
    r"(?:possible|plausible|correct|right|acceptable|valid|fine)|(?:could|might|may)\s+be\s+(?:possible|correct|right|acceptable|valid))\b"
)
IF_OPTION = re.compile(r"\b(?i:if)\s+(?:option\s+)?[(]?[A-J][)]?\s")
ANOTHER = re.compile(r"(?:^|[\s,;])[(\[]?[A-J](?:[)\]]|[.:](?=\s))")  # the next of a list of options
CONDITION = re.compile(r"\s*,?\s*(?:if|when|unless|provided|assuming|only\s+if)\b", re.IGNORECASE)
SUPPOSED = re.compile(  # right before an announcement
    r"\b(?:if|whether|suppos\w+|assum\w+|imagine)\s+(?:that\s+)?(?:the\s+(?:answer\s+)?)?$", re.IGNORECASE
)
EXAMPLE = re.compile(  # an announcement in quotes, of the form that was asked for
    r"\b(?:such\s+as|like|format|form|line|template|e\.g\.|saying|write|instructions?[^.\n]{0,40})[\s:,]*['\"‘“`]$",
    re.IGNORECASE,
)
HEDGED_CLAIM = re.compile(r"\b(?:not|never|if|whether|nobody)\b|n't\b", re.IGNORECASE)
NOT_WRONG = r"(?!\W*\s(?:is|are)\s+(?:wrong|incorrect|false|not)\b)"  # B and C is wrong
DOUBTFUL = (
    r"(?:maybe|perhaps|possibly|alternatively|vs\.?|versus|(?:less\s+|more\s+)?likely|is\s+it|else"
    r"|tal\s+vez|quizás|peut-être|vielleicht)"
)
JOINER = rf"(?:[,/|]|(?:{DOUBTFUL}|also|as\s+well\s+as|plus|then)\b|\b{OR}(?![a-z])|{AND}(?![a-z]))"
GUESSED = re.compile(rf"(?<![A-Za-z])(?:{OR}|{DOUBTFUL})(?![A-Za-z])|\|")
SEVERAL = re.compile(
    rf"\s*(?:[;(]\s*|\.\.\.\s*|\.\s*(?=Or\b))?(?:{JOINER}\s*)+(?:option\s+)?[*(\[{{\"']*[A-J]{ENDS}{NOT_WRONG}"
)
DENIES = re.compile(r"\W*\s(?:is|was)\s+(?:wrong|incorrect|false|not)\b", re.IGNORECASE)
NEGATED = re.compile(
    r"(?:\bnot|n't|\bnever|\bneither|\bexcept|\bincorrect|\bwrong|不是|并非)\s*(?:\w+\s+){0,1}[(*\"']*$", re.IGNORECASE
)
HEDGE = re.compile(
    r"\b(?:might|maybe|perhaps|possibly|could\s+(?:be|answer|choose|pick|say)|not\s+sure|cannot\s+decide|either)\b|\?",
    re.IGNORECASE,
)
TURN = re.compile(r"\n\s*(?:question|problem|user|human|q)\s*\d*\s*:|<\|im_start\|>|\[INST\]", re.IGNORECASE)
STATEMENTS = re.compile(r"[ivx]+(?:(?:\W|\band\b)+[ivx]+)*")  # by their numbers: I, III and IV
MORE = r"(?:\W|and\b)+[ivx]+\b"
