"""Filters of rows and traces: questions that cannot be judged, lengths, repetition, structure."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar

from pydantic import Field, SkipValidation, model_validator

from rlkd.data.curate.step import STEPS, Decision, Removal, Step, TraceStep
from rlkd.data.fields import text_of
from rlkd.data.rows import Row
from rlkd.data.text import answer_kind, words
from rlkd.errors import DataCardError

TokenCounter = Callable[[str], int]

MAX_GOLD_CHARS = 200
MAX_GOLD_WORDS = 15
_URL = re.compile(r"https?://|www\.|!\[[^\]]*\]\(|<img\b|\\includegraphics", re.IGNORECASE)
_FIGURE = re.compile(
    r"\[asy\]|\\begin\{tikzpicture\}|(?:figure|diagram|graph|picture) (?:below|above|shown)", re.IGNORECASE
)
_PROOF = re.compile(r"\b(?:prove|show|verify) (?:that|the|each|every|by|using)\b", re.IGNORECASE)
_ASKS = re.compile(
    r"\?|\b(?:find|determine|compute|calculate|evaluate|what|how (?:many|much)|solve|simplify)\b", re.IGNORECASE
)
_PROSE_WORD = re.compile(r"(?<![\\a-zA-Z])[a-zA-Z]{3,}")
# A. (A) \textbf{(A)}\ 1 **A.** A\u3001 but not f(A)
_OPTION = re.compile(r"(?<![^\W\d_])(?<![^\W\d_]\()([A-J])[).:}\u3001]")
_MOJIBAKE = re.compile(r"â€[\x80-\xbf™œž˜“”]|Ã[\x80-\xbf©¨¤¶¼]|\ufffd")


def question_faults(row: Row) -> list[str]:
    """Why this question cannot be trained on by answer checking; empty when nothing is wrong."""
    question, answer = row.get("question"), row.get("answer")
    if not isinstance(question, str) or not question.strip():
        return ["no question"]
    if answer is None or not text_of(answer).strip():
        return ["no answer"]
    gold, kind = text_of(answer), answer_kind(text_of(answer))
    checks = {
        "sentinel gold": kind == "sentinel",
        "gold is a whole solution": len(gold) > MAX_GOLD_CHARS and len(_PROSE_WORD.findall(gold)) > MAX_GOLD_WORDS,
        "letter without options": kind == "letter" and gold.strip().isupper() and not _lists_options(row),
        "link or image in the question": bool(_URL.search(question)),
        "figure needed": bool(_FIGURE.search(question)),
        "proof question": bool(_PROOF.search(question)) and not _ASKS.search(question),
        "broken encoding": bool(_MOJIBAKE.search(question) or _MOJIBAKE.search(gold)),
    }
    return [fault for fault, found in checks.items() if found]


def _lists_options(row: Row) -> bool:
    """Whether there is a field of options, or two letters are marked as such in the question."""
    return bool(row.get("options")) or len(set(_OPTION.findall(str(row.get("question"))))) > 1


@STEPS.register("question_filter")
class QuestionFilter(Step):
    """Drop rows whose question or gold shows one of ``faults`` (see ``question_faults``)."""

    kind: ClassVar[str] = "question_filter"
    faults: tuple[str, ...] = (
        "no question",
        "no answer",
        "sentinel gold",
        "gold is a whole solution",
        "letter without options",
        "link or image in the question",
        "broken encoding",
    )

    def decide(self, rows: Sequence[Row]) -> list[Decision]:
        found = [next((fault for fault in question_faults(row) if fault in self.faults), None) for row in rows]
        return [
            Decision(row) if fault is None else Decision.drop(fault, answer=row.get("answer"))
            for row, fault in zip(rows, found, strict=True)
        ]


@STEPS.register("length_filter")
class LengthFilter(TraceStep):
    """Keep prompts and traces within token limits, counted by the *student's* tokenizer (``token_counter``).

    Without a token counter, white-space separated words are counted, and the report says so.
    """

    kind: ClassVar[str] = "length_filter"
    max_prompt: int | None = Field(default=None, ge=1)
    min_trace: int = Field(default=1, ge=0)
    max_trace: int | None = Field(default=None, ge=1)
    token_counter: SkipValidation[TokenCounter | None] = Field(default=None, exclude=True)

    def settings(self) -> dict[str, Any]:
        return {**super().settings(), "unit": "tokens" if self.token_counter else "words"}

    def _length(self, text: str) -> int:
        return self.token_counter(text) if self.token_counter else len(text.split())

    def _decide(self, row: Row) -> Decision:
        if self.max_prompt is not None and (length := self._length(row["question"])) > self.max_prompt:
            return Decision.drop("prompt too long", length=length)
        return super()._decide(row) if "traces" in row else Decision(row)

    def judge(self, trace: Row) -> Removal | None:
        length = self._length(trace["text"])
        if length < self.min_trace:
            return Removal("trace too short", {"length": length})
        if self.max_trace is not None and length > self.max_trace:
            return Removal("trace too long", {"length": length})
        return None


@STEPS.register("ngram_filter")
class NgramFilter(TraceStep):
    """Drop traces that loop: one run of ``n`` words occurs more than ``max_count`` times in the trace.

    Source: "Not All Correct Answers Are Equal" (2505.14464): 20-token n-grams, more than 20 times. Differs: words
    instead of model tokens, and counted within one trace, as the paper does not say what it counts over.
    """

    kind: ClassVar[str] = "ngram_filter"
    n: int = Field(default=20, ge=1)
    max_count: int = Field(default=20, ge=1)

    def judge(self, trace: Row) -> Removal | None:
        tokens = words(trace["text"])
        if len(tokens) < self.n + self.max_count:  # fewer runs than the limit allows
            return None
        counts = Counter(zip(*(tokens[start:] for start in range(self.n)), strict=False))
        gram, count = counts.most_common(1)[0]
        return Removal("repeated n-gram", {"count": count, "ngram": " ".join(gram)}) if count > self.max_count else None


@STEPS.register("structure_filter")
class StructureFilter(TraceStep):
    """Drop traces that are empty, cut off, not closed in their reasoning, or lack the think or the answer part.

    Cut off is a sampled trace that ran into its limit of tokens (``finished`` is false).
    ``think="any"`` accepts traces without tags; a tag that is opened must still be closed once, with text after it.
    """

    kind: ClassVar[str] = "structure_filter"
    think: str = Field(default="any", pattern="^(any|required|forbidden)$")
    ends_with: tuple[str, ...] = Field(default=(), description="a complete trace contains one of these, e.g. \\boxed{")

    def judge(self, trace: Row) -> Removal | None:
        fault = "cut off by the token limit" if trace.get("finished") is False else self._fault(trace.get("text"))
        return Removal(fault, {}) if fault else None

    def _fault(self, text: Any) -> str | None:
        if not isinstance(text, str) or not text.strip():
            return "empty trace"
        opened, closed = text.count("<think>"), text.count("</think>")
        if opened > 1 or closed > 1:
            return "several think blocks"
        if opened and not closed:
            return "reasoning never closed"
        answer = text.rpartition("</think>")[2]
        if closed and not answer.strip():
            return "no answer after the reasoning"
        if self.think == "required" and not closed:
            return "no reasoning block"
        if self.think == "forbidden" and (opened or closed):
            return "reasoning block"
        if self.ends_with and not any(mark in answer for mark in self.ends_with):
            return "no final answer"
        return None


@STEPS.register("pass_rate_filter")
class PassRateFilter(Step):
    """Keep questions whose pass rate under a given policy lies within [low, high].

    ``pass_rate`` gives one number in [0, 1] a row, or None where the verifier abstained; such rows stay when
    ``keep_unknown``, and are named either way. The rate is written to the row as ``pass_rate``.
    Source: DED (2508.09883) drops what the student solves too often; difficulty selection of DeepMath (2504.11456).
    """

    kind: ClassVar[str] = "pass_rate_filter"
    low: float = Field(default=0.0, ge=0.0, le=1.0)
    high: float = Field(default=1.0, ge=0.0, le=1.0)
    keep_unknown: bool = True
    pass_rate: SkipValidation[Callable[[Sequence[Row]], Sequence[float | None]]] = Field(exclude=True)

    @model_validator(mode="after")
    def _ordered(self) -> PassRateFilter:
        if self.low > self.high:
            raise ValueError(f"low={self.low} is above high={self.high}")
        return self

    def survey(self, rows: Callable[[], Iterator[Row]], folder: Path) -> None:  # noqa: ARG002
        """Raises: DataCardError when no row has a rate: then the rates are those of other rows."""
        first = None
        for row in rows():
            if self.pass_rate([row])[0] is not None:
                return
            first = first or row
        if first is not None:
            raise DataCardError(
                f"step '{self.kind}': no row has a pass rate; ids look like {first['id']!r} here: were the rates "
                "measured on other rows?"
            )

    def decide(self, rows: Sequence[Row]) -> list[Decision]:
        return [self._judge(row, rate) for row, rate in zip(rows, self.pass_rate(rows), strict=True)]

    def _judge(self, row: Row, rate: float | None) -> Decision:
        if rate is None:
            return Decision({**row, "pass_rate": None}) if self.keep_unknown else Decision.drop("pass rate unknown")
        if rate > self.high:
            return Decision.drop("too easy", pass_rate=rate)
        if rate < self.low:
            return Decision.drop("too hard", pass_rate=rate)
        return Decision({**row, "pass_rate": rate})
