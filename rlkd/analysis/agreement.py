"""Agreement and fidelity of a distilled model with its teacher, and tests over many such pairs.

Source: "Generalization vs Fidelity Paradox" (2505.15442):
    agreement = mean_x 1[answer_S(x) == answer_T(x)];   fidelity = mean_x BLEU(rationale_S, rationale_T)
Differs: agreement is also split by whether the teacher is right (ours), as agreeing with a wrong teacher is no gain.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from reward.protocol import Verifier
from rlkd.analysis.report import Table
from rlkd.data.rows import Row
from rlkd.errors import DataCardError, MissingExtraError
from rlkd.evaluate import wilson

Fidelity = Callable[[str, str], float]
Parts = tuple[str, ...]


@dataclass(frozen=True)
class Comparison:
    """One question. ``agree``: None where the teacher gave no comparable answer; ``right``: None where abstained."""

    agree: bool | None
    teacher_right: bool | None
    student_right: bool | None
    fidelity: float


def compare(row: Row, verifier: Verifier, fidelity: Fidelity) -> Comparison:
    """Judge teacher and student against the gold and against each other. The row has answer, teacher and student.

    The answers are compared by the verifier itself, the teacher's answer taken as gold, so that 1/2 agrees with 0.5.
    """
    for name in ("answer", "teacher", "student"):
        if name not in row:
            raise DataCardError(
                f"row {row.get('id')!r} has no '{name}'; it needs answer (gold), teacher and student texts"
            )
    teacher, student = verifier.verify(row["teacher"], row), verifier.verify(row["student"], row)
    agree: bool | None = None
    if teacher.parsed is not None:
        verdict = verifier.verify(row["student"], {**row, "answer": teacher.parsed})
        agree = None if verdict.score is None else verdict.score >= 1.0
    return Comparison(agree, _right(teacher.score), _right(student.score), fidelity(row["student"], row["teacher"]))


def _right(score: float | None) -> bool | None:
    return None if score is None else score >= 1.0


def bleu(student: str, teacher: str) -> float:
    """Sentence BLEU of the student's text against the teacher's, in [0, 1]."""
    try:
        import sacrebleu
    except ImportError as error:
        raise MissingExtraError("fidelity by BLEU needs sacrebleu: pip install 'rlkd[train]'") from error
    return float(sacrebleu.sentence_bleu(student, [teacher]).score) / 100.0


def agreement_table(comparisons: Sequence[Comparison]) -> Table:
    """Shares with 95 % Wilson intervals; each share names how many questions it is over."""
    known = [each for each in comparisons if each.agree is not None]
    groups: dict[str, list[Comparison]] = {
        "agreement": known,
        "agreement where the teacher is right": [each for each in known if each.teacher_right is True],
        "agreement where the teacher is wrong": [each for each in known if each.teacher_right is False],
    }
    rows = [_share(name, [bool(each.agree) for each in group]) for name, group in groups.items()]
    for name, values in {
        "accuracy of the teacher": [each.teacher_right for each in comparisons],
        "accuracy of the student": [each.student_right for each in comparisons],
    }.items():
        rows.append(_share(name, [value for value in values if value is not None]))
    rows.append(_mean("fidelity (BLEU)", [each.fidelity for each in comparisons]))
    return Table("Agreement and fidelity", ("measure", "value", "low", "high", "questions"), tuple(rows))


def _share(name: str, values: Sequence[bool]) -> tuple[str, float | None, float | None, float | None, int]:
    if not values:
        return name, None, None, None, 0
    return name, sum(values) / len(values), *wilson(sum(values), len(values)), len(values)


def _mean(name: str, values: Sequence[float]) -> tuple[str, float | None, float | None, float | None, int]:
    if len(values) < 2:
        return name, values[0] if values else None, None, None, len(values)
    import numpy as np
    from scipy.stats import t

    mean, error = float(np.mean(values)), float(np.std(values, ddof=1)) / len(values) ** 0.5
    half = float(t.ppf(0.975, len(values) - 1)) * error
    return name, mean, mean - half, mean + half, len(values)


def draw_agreement(table: Table) -> Callable[[Any], None]:
    """Bars with their intervals."""

    def draw(axes: Any) -> None:
        rows = [row for row in table.rows if isinstance(row[1], float)]
        for at, (_, value, low, high, _n) in enumerate(rows):
            assert isinstance(value, float)
            axes.barh(at, value, color="tab:blue", alpha=0.6)
            if isinstance(low, float) and isinstance(high, float):
                axes.plot([low, high], [at, at], color="black")
        axes.set_yticks(range(len(rows)), [str(row[0]) for row in rows])
        axes.set_xlim(0, 1)
        axes.invert_yaxis()
        axes.set_title(table.title)

    return draw


def improvement_table(experiments: Iterable[Mapping[str, Any]]) -> Table:
    """Does distillation help, do methods differ, and what goes along with the gain?

    Args:
        experiments: one mapping a pair and task: method, accuracy (distilled), sft_accuracy, and any of
            teacher_accuracy, student_size, agreement, fidelity.
    Tests: one-sided one-sample t-test that improvement > 0; one-way ANOVA over methods; Spearman correlation of the
    improvement with each further column. A test for which there are too few values is left out.
    """
    from scipy import stats

    rows = list(experiments)
    gains = [float(row["accuracy"]) - float(row["sft_accuracy"]) for row in rows]
    found: list[tuple[str, float | None, float | None, int]] = []
    if len(gains) > 1:
        test = stats.ttest_1samp(gains, 0.0, alternative="greater")
        found.append(("improvement > 0 (t)", float(test.statistic), float(test.pvalue), len(gains)))
    methods = {str(row["method"]) for row in rows}
    groups = [
        [gain for row, gain in zip(rows, gains, strict=True) if row["method"] == each] for each in sorted(methods)
    ]
    if len(groups) > 1 and all(len(group) > 1 for group in groups):
        anova = stats.f_oneway(*groups)
        found.append(("methods differ (F)", float(anova.statistic), float(anova.pvalue), len(gains)))
    for name in ("teacher_accuracy", "student_size", "sft_accuracy", "agreement", "fidelity"):
        both = [(float(row[name]), gain) for row, gain in zip(rows, gains, strict=True) if row.get(name) is not None]
        if len(both) > 2 and len({value for value, _ in both}) > 1:
            rho = stats.spearmanr(*zip(*both, strict=True))
            found.append((f"improvement with {name} (rho)", float(rho.statistic), float(rho.pvalue), len(both)))
    return Table("Improvement by distillation", ("test", "statistic", "p", "n"), tuple(found))
