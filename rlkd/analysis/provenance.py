"""Where a distilled model's sentences come from: teacher, student before training, both, or neither (boosted).

Source: provenance tracing (2512.20908). Sentence probabilities as in ``rlkd.data.curate.provenance``; rules in order:

    shared:  |D_SD|, |D_TD| and |D_TS| <= alpha        D_XY = p_X - p_Y
    teacher: D_TS > beta          student: D_TS < -beta          boosted: otherwise
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from rlkd.analysis.report import Table
from rlkd.data.curate.score import TokenScores, span_probability
from rlkd.data.text import sentences

Source = Literal["shared", "teacher", "student", "boosted"]
SOURCES: tuple[Source, ...] = ("teacher", "boosted", "shared", "student")


def source_of(teacher: float, student: float, distilled: float, *, alpha: float, beta: float) -> Source:
    """The class of a sentence from its probability under the three models."""
    gap = teacher - student
    if max(abs(student - distilled), abs(teacher - distilled), abs(gap)) <= alpha:
        return "shared"
    if gap > beta:
        return "teacher"
    return "student" if gap < -beta else "boosted"


@dataclass(frozen=True)
class TracedAnswer:
    """The sources of one sampled answer's sentences, in order, and whether the answer was right (None: not known)."""

    sources: tuple[Source, ...]
    right: bool | None


def trace_answer(
    text: str,
    right: bool | None,
    scores: tuple[TokenScores, TokenScores, TokenScores],
    *,
    alpha: float = 0.05,
    beta: float = 0.1,
) -> TracedAnswer:
    """Trace an answer of the distilled model. ``scores`` are those of teacher, student and distilled model.

    beta = 0.1 is the paper's; its alpha is not given, 0.05 is ours. A sentence in which a model begins no token is
    left out.
    """
    found = []
    for span in sentences(text):
        teacher, student, distilled = (span_probability(each, span) for each in scores)
        if teacher is not None and student is not None and distilled is not None:
            found.append(source_of(teacher, student, distilled, alpha=alpha, beta=beta))
    return TracedAnswer(tuple(found), right)


def source_curves(answers: Iterable[TracedAnswer], min_answers: int = 5) -> dict[Source, list[float]]:
    """Share of each source by sentence index, cut where fewer than ``min_answers`` answers are that long."""
    by_index: dict[int, Counter[str]] = defaultdict(Counter)
    for answer in answers:
        for at, source in enumerate(answer.sources):
            by_index[at][source] += 1
    length = next((at for at in range(len(by_index)) if by_index[at].total() < min_answers), len(by_index))
    return {source: [by_index[at][source] / by_index[at].total() for at in range(length)] for source in SOURCES}


def provenance_table(answers: Sequence[TracedAnswer], min_answers: int = 5) -> Table:
    """Shares over all sentences of right and of wrong answers, and the area between their curves.

    Area: mean over the sentence indices that both curves reach of (share in right - share in wrong answers).
    """
    right, wrong = ([each for each in answers if each.right is value] for value in (True, False))
    curves = source_curves(right, min_answers), source_curves(wrong, min_answers)
    totals = tuple(Counter(source for each in group for source in each.sources) for group in (right, wrong))
    rows = []
    for source in SOURCES:
        gaps = [a - b for a, b in zip(curves[0][source], curves[1][source], strict=False)]
        shares = [count[source] / count.total() if count.total() else None for count in totals]
        rows.append((source, *shares, sum(gaps) / len(gaps) if gaps else None))
    title = f"Provenance of sentences: {len(right)} right and {len(wrong)} wrong answers"
    return Table(title, ("source", "share in right", "share in wrong", "area between the curves"), tuple(rows))


def draw_provenance(answers: Sequence[TracedAnswer], min_answers: int = 5) -> Callable[[Any], None]:
    """Share of each source by sentence index; right answers as lines, wrong ones dashed."""

    def draw(axes: Any) -> None:
        for value, style in ((True, "-"), (False, "--")):
            curves = source_curves([each for each in answers if each.right is value], min_answers)
            for colour, source in enumerate(SOURCES):
                label = f"{source}, {'right' if value else 'wrong'}"
                axes.plot(curves[source], style, color=f"C{colour}", label=label)
        axes.set(xlabel="sentence", ylabel="share", ylim=(0, 1), title="Provenance by sentence")
        axes.legend(fontsize="small", ncols=2)

    return draw
