"""reasoning-gym tasks, judged by each task's own scorer."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any

from reward.protocol import Example
from reward.text import after_thinking, last_box, last_tags, until_stop
from reward.verdict import Verdict
from rlkd.errors import MissingExtraError

_ANNOUNCED = re.compile(r"(?:final\s+)?answer\s*(?:\*\*)?\s*(?:is|:)\s*(?:\*\*)?\s*", re.IGNORECASE)
# Some scorers eval the answer, or hand it to sympy's parse_expr, which is eval. What a policy wrote is never evaluated:
# to the first kind it must be a literal (no call is possible without a bracket), to the second a formula.
LITERAL = frozenset(["string_insertion", "spiral_matrix", "binary_matrix", "n_queens"])
FORMULA = frozenset(
    ["countdown", "puzzle24", "intermediate_integration", "simple_integration", "polynomial_multiplication"]
)
_FORMULA = re.compile(
    r"(?:[\d\s.,()+*/^=-]|(?<![a-zA-Z])(?:sin|cos|tan|exp|log|ln|sqrt|pi|asin|acos|atan|sinh|cosh|tanh|[a-zA-Z])(?![a-zA-Z]))*"
)
NONSENSE = "zqx nonsense zqx"


class ReasoningGymVerifier:
    """Scores the last answer tag, else the last box, else what follows "the answer is", else everything said.

    The example is a reasoning-gym entry: ``answer`` and ``metadata`` (a mapping, or its JSON text) with
    ``source_dataset``. A scorer's partial credit is kept as a partial score; with ``binary`` only 1.0 counts.
    """

    name = "reasoning_gym"
    reads = frozenset[str]()

    def __init__(self, *, binary: bool = False) -> None:
        self._binary = binary

    def verify(self, completion: str, example: Example) -> Verdict:
        entry = _entry(example)
        if isinstance(entry, str):
            return Verdict.abstain("bad_gold", entry)
        answer = _answer(completion or "")
        if not answer:
            return Verdict.wrong(reason="unparsed", detail="no answer")
        return self._score(answer, entry)

    def check_gold(self, example: Example) -> Verdict:
        """Right when the task's scorer gives its own answer full marks, and nonsense less."""
        entry = _entry(example)
        if isinstance(entry, str):
            return Verdict.abstain("bad_gold", entry)
        if self._raw_score(NONSENSE, entry) == 1.0:
            return Verdict.abstain("bad_gold", "the task's scorer gives full marks to nonsense")
        if entry["answer"] is None:
            return Verdict.right(detail="the task has no single answer")
        score = self._raw_score(str(entry["answer"]), entry)
        return Verdict.right() if score == 1.0 else Verdict.abstain("bad_gold", f"own answer scores {score}")

    def _score(self, answer: str, entry: Mapping[str, Any]) -> Verdict:
        task = str(entry["metadata"]["source_dataset"])
        if (task in FORMULA and not _FORMULA.fullmatch(answer)) or (task in LITERAL and re.search(r"\(|__", answer)):
            return Verdict.wrong(answer[:200], reason="unparsed", detail="not a plain formula or literal")
        score = self._raw_score(answer, entry)
        if score is None:
            gold = entry["answer"]
            if gold is None or self._raw_score(str(gold), entry) is None:
                return Verdict.abstain("error", f"the scorer of {task} fails on its own answer")
            return Verdict.wrong(answer[:200], reason="unparsed", detail="the task's scorer cannot read it")
        if self._binary and score < 1.0:
            score = 0.0
        return Verdict.graded(min(1.0, max(0.0, score)), answer[:200])

    def _raw_score(self, answer: str, entry: Mapping[str, Any]) -> float | None:
        """None when the scorer raises."""
        scorer = _scorer(str(entry["metadata"]["source_dataset"]))
        try:
            return float(scorer(answer=answer, entry=dict(entry)))
        except (
            ArithmeticError,
            AssertionError,
            LookupError,
            SyntaxError,
            TypeError,
            ValueError,
            AttributeError,
            NameError,
        ):
            return None


def _entry(example: Example) -> dict[str, Any] | str:
    metadata = example.get("metadata")
    if isinstance(metadata, str):
        try:
            metadata = json.loads(metadata)
        except ValueError:
            return "metadata is a string that is no JSON"
    if not isinstance(metadata, Mapping) or "source_dataset" not in metadata:
        return "metadata.source_dataset is missing"
    if metadata["source_dataset"] not in _tasks():
        return f"unknown reasoning-gym task {metadata['source_dataset']!r}"
    return {"question": example.get("question", ""), "answer": example.get("answer"), "metadata": dict(metadata)}


def _tasks() -> Mapping[str, Any]:
    try:
        from reasoning_gym.factory import DATASETS
    except ImportError as error:
        raise MissingExtraError(
            "verifier 'reasoning_gym' needs the package reasoning-gym: pip install 'rlkd[train]'"
        ) from error
    return dict(DATASETS)


@lru_cache(maxsize=256)
def _scorer(task: str) -> Callable[..., float]:
    from reasoning_gym.factory import get_score_answer_fn

    scorer: Callable[..., float] = get_score_answer_fn(task)
    return scorer


def _answer(completion: str) -> str:
    said = after_thinking(until_stop(completion))
    if said is None:
        return ""
    tags = last_tags(said)
    if tags:
        return ", ".join(tags)
    box = last_box(said)
    if box is not None:
        return box.strip()
    announced = list(_ANNOUNCED.finditer(said))
    return (said[announced[-1].end() :] if announced else said).strip()
