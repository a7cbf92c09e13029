"""Which training questions are, contain or rephrase an evaluation question: three rules, each match with its text.

N-gram matching alone mostly flags ordinary wording, and misses swapped numbers and paraphrases. So the n-gram rules
ask how much of the *evaluation question* is covered, n-grams that many evaluation questions share don't count, and
what was matched is kept beside the row for a human to read.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, PrivateAttr, SkipValidation, field_validator, model_validator

from rlkd.data.curate.embed import Embedder
from rlkd.data.curate.run import card_identity
from rlkd.data.curate.step import STEPS, Decision, Step
from rlkd.data.rows import Row
from rlkd.data.text import NUMBER, masked_words, ngrams, text_key, words

Rule = Literal["exact", "ngram", "masked", "embedding"]
Judge = Callable[[str, str], bool]


@dataclass(frozen=True)
class EvalQuestion:
    """One question of an evaluation set."""

    set: str
    id: str
    question: str


@dataclass(frozen=True)
class Match:
    """A training question that matches an evaluation question, by which rule and how strongly (1 is a copy)."""

    rule: Rule
    score: float
    eval_set: str
    eval_id: str
    eval_question: str
    matched_text: str


class NgramIndex:
    """Covered share of each evaluation question: n-grams found in a text, over all that count.

    A question of at most ``n`` words is one gram, and counts only where it is at least half of the text.
    """

    def __init__(self, texts: Sequence[list[str]], n: int, max_shared: int, *, masked: bool = False) -> None:
        self.n = n
        grams = [set(ngrams(text, n)) for text in texts]
        common = Counter(gram for each in grams for gram in each)
        self._owners: dict[str, list[int]] = defaultdict(list)
        self._totals = [0] * len(texts)
        for owner, each in enumerate(grams):
            for gram in each:
                if common[gram] > max_shared:  # wording that many questions share says nothing about one
                    continue
                self._totals[owner] += 1
                if not masked or _says_something(gram):  # a formula without its numbers counts, but never as covered
                    self._owners[gram].append(owner)
        # questions shorter than n are one gram of their own length: looked for where their first word stands
        self._lengths = [len(text) for text in texts]
        self._short: dict[str, set[int]] = defaultdict(set)
        for text in texts:
            if 0 < len(text) < n:
                self._short[text[0]].add(len(text))

    def best(self, text: list[str]) -> tuple[float, int, str] | None:
        """(covered share, evaluation question, matched words) of the best covered one."""
        hits: dict[int, list[str]] = defaultdict(list)
        for gram in dict.fromkeys(self._grams(text)):
            for owner in self._owners.get(gram, ()):
                # a question of one gram is ordinary wording inside a longer one
                if self._lengths[owner] > self.n or 2 * self._lengths[owner] >= len(text):
                    hits[owner].append(gram)
        if not hits:
            return None
        owner = max(hits, key=lambda each: (len(hits[each]) / self._totals[each], -each))
        return len(hits[owner]) / self._totals[owner], owner, " ... ".join(hits[owner][:3])

    def _grams(self, text: list[str]) -> Iterable[str]:
        yield from ngrams(text, self.n)
        for start, word in enumerate(text):
            for length in self._short.get(word, ()):
                yield " ".join(text[start : start + length])


def _says_something(gram: str) -> bool:
    """At least three distinct words that are no masked number."""
    return len(set(gram.split()) - {NUMBER}) >= 3


class EvalIndex:
    """All evaluation questions, indexed by every rule."""

    def __init__(
        self,
        questions: Sequence[EvalQuestion],
        *,
        n: int = 5,
        coverage: float = 0.5,
        masked_coverage: float = 0.7,
        max_shared: int = 5,
        embedder: Embedder | None = None,
        cosine: float = 0.85,
        judge: Judge | None = None,
        neighbours: int = 5,
    ) -> None:
        self.questions = list(questions)
        self.coverage, self.masked_coverage, self.cosine = coverage, masked_coverage, cosine
        self.embedder, self.judge, self.neighbours = embedder, judge, neighbours
        self._exact = {text_key(item.question): at for at, item in reversed(list(enumerate(self.questions)))}
        self._ngrams = NgramIndex([words(item.question) for item in self.questions], n, max_shared)
        masked = [masked_words(item.question) for item in self.questions]
        self._masked = NgramIndex(masked, n, max_shared, masked=True)
        texts = [item.question for item in self.questions]
        self._vectors: NDArray[np.float32] | None = embedder(texts) if embedder and texts else None

    def matches(self, questions: Sequence[str]) -> list[Match | None]:
        """The first rule that fires for each question, strongest evidence first: exact, n-gram, masked, embedding."""
        found = [self._by_words(question) for question in questions]
        if self._vectors is not None and self.embedder is not None:
            open_rows = [at for at, match in enumerate(found) if match is None]
            for start in range(0, len(open_rows), 1024):  # a block of similarities, never all rows at once
                block = open_rows[start : start + 1024]
                similar = self.embedder([questions[at] for at in block]) @ self._vectors.T
                for at, row in zip(block, similar, strict=True):
                    found[at] = self._by_embedding(questions[at], row)
        return found

    def _by_words(self, question: str) -> Match | None:
        if (at := self._exact.get(text_key(question))) is not None:
            return self._match("exact", 1.0, at, question)
        best = self._ngrams.best(words(question))
        if best is not None and best[0] >= self.coverage:
            return self._match("ngram", *best)
        best = self._masked.best(masked_words(question))
        if best is not None and best[0] >= self.masked_coverage:
            return self._match("masked", *best)
        return None

    def _by_embedding(self, question: str, similar: NDArray[np.float32]) -> Match | None:
        if self.judge is None:
            at = int(similar.argmax())
            return self._match("embedding", float(similar[at]), at, "") if similar[at] >= self.cosine else None
        for at in np.argsort(-similar)[: self.neighbours]:
            if similar[at] >= self.cosine and self.judge(question, self.questions[int(at)].question):
                return self._match("embedding", float(similar[at]), int(at), "")
        return None

    def _match(self, rule: Rule, score: float, at: int, matched: str) -> Match:
        item = self.questions[at]
        return Match(rule, round(score, 4), item.set, item.id, item.question, matched)


@STEPS.register("decontaminate")
class Decontaminate(Step):
    """Drop questions that match an evaluation question; the removed list shows both texts and what matched.

    Source: DeepMath (2504.11456) step 2: embed, five nearest neighbours, an LLM judge drops duplicates and paraphrases.
    Differs: n-gram and number-masked rules come first; without ``judge`` a cosine of at least ``cosine`` decides
    (2505.14464 uses 0.9 with a larger model; with this one 0.85 finds more paraphrases at hardly any false match).
    """

    kind: ClassVar[str] = "decontaminate"
    sets: tuple[str, ...] = Field(description="cards of the evaluation sets")
    n: int = Field(default=5, ge=1)
    coverage: float = Field(default=0.5, gt=0.0, le=1.0)
    masked_coverage: float = Field(default=0.7, gt=0.0, le=1.0)
    cosine: float = Field(default=0.85, gt=0.0, le=1.0)
    data_dir: str | None = Field(default=None, exclude=True)
    embedder: SkipValidation[Embedder | None] = Field(default=None, exclude=True)
    judge: SkipValidation[Judge | None] = Field(default=None, exclude=True)
    _index: Any = PrivateAttr(default=None)

    @field_validator("sets")
    @classmethod
    def _cards_exist(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        from rlkd.data.cards import load_card

        for name in names:
            load_card(name)
        return names

    @model_validator(mode="after")
    def _files_are_there(self) -> Decontaminate:
        self._eval_rows()
        return self

    def settings(self) -> dict[str, Any]:
        found = {"embedding": self.embedder is not None, "judge": self.judge is not None}
        return {**super().settings(), **found, "eval_rows": self._eval_rows()}

    def _eval_rows(self) -> dict[str, Any]:
        """The evaluation questions by what they are read from, and how: with others, no decision holds."""
        from rlkd.data.cards import load_card

        cards = {name: load_card(name) for name in self.sets}
        return {
            name: [card_identity(card, self.data_dir), text_key(card.reading.model_dump_json()).hex()]
            for name, card in cards.items()
        }

    def decide(self, rows: Sequence[Row]) -> list[Decision]:
        if self._index is None:
            self._index = self._build()
        found = self._index.matches([row["question"] for row in rows])
        return [
            Decision(row) if match is None else Decision.drop(f"contaminated ({match.rule})", **asdict(match))
            for row, match in zip(rows, found, strict=True)
        ]

    def forget(self) -> None:
        self._index = None

    def _build(self) -> EvalIndex:
        return EvalIndex(
            load_eval_questions(self.sets, self.data_dir),
            n=self.n,
            coverage=self.coverage,
            masked_coverage=self.masked_coverage,
            cosine=self.cosine,
            embedder=self.embedder,
            judge=self.judge,
        )


def load_eval_questions(sets: Iterable[str], data_dir: str | None = None) -> list[EvalQuestion]:
    """All readable questions of the named cards."""
    from rlkd.data.cards import load_card
    from rlkd.data.rows import BadRow

    found: list[EvalQuestion] = []
    for name in sets:
        card = load_card(name)
        for number, row in card.rows(data_dir):
            if not isinstance(row, BadRow):
                example = card.example(row)
                found.append(EvalQuestion(name, str(example.get("id", number)), example["question"]))
    return found
