"""Agreement, teacher hacking and provenance against values worked out by hand, and the commands end to end."""

from __future__ import annotations

import csv
import math
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from reward import load
from rlkd.analysis.agreement import agreement_table, bleu, compare, improvement_table
from rlkd.analysis.cli import app
from rlkd.analysis.density import density_table, group_scores
from rlkd.analysis.hacking import Curve, fit_power_law, power_law_break, teacher_hacking
from rlkd.analysis.provenance import TracedAnswer, provenance_table, source_curves, source_of, trace_answer
from rlkd.analysis.report import Table
from rlkd.data.curate.score import TokenScores
from rlkd.data.rows import Row, write_rows
from rlkd.data.text import sentences
from rlkd.errors import DataCardError, NumericsError


def traced(gsm8k_traces: list[Row], limit: int = 200) -> list[Row]:
    """Two real models of one family: 175b_verification as teacher, 6b_verification as student."""
    rows = []
    for row in gsm8k_traces[:limit]:
        by_model = {trace["model"]: trace for trace in row["traces"]}
        teacher, student = by_model["175b_verification"], by_model["6b_verification"]
        rows.append({**row, "teacher": teacher["text"], "student": student["text"], "claims": (teacher, student)})
    return rows


def test_agreement_of_two_real_models(gsm8k_traces: list[Row]) -> None:
    rows = traced(gsm8k_traces)
    table = agreement_table([compare(row, load("math"), bleu) for row in rows])
    found = {str(row[0]): row for row in table.rows}
    last = {name: [row[name].rpartition("boxed{")[2].split("}")[0] for row in rows] for name in ("teacher", "student")}
    both = list(zip(last["teacher"], last["student"], strict=True))

    def number(text: str) -> float | None:
        try:
            return float(text.replace(",", "").replace("$", "").rstrip("."))
        except ValueError:
            return None

    same = [number(a) == number(b) for a, b in both if number(a) is not None]
    agreement = found["agreement"]
    assert isinstance(agreement[1], float) and agreement[1] == pytest.approx(sum(same) / len(same), abs=0.01)
    for name, at in (("teacher", 0), ("student", 1)):
        right = sum(row["claims"][at]["claim"] for row in rows)
        assert found[f"accuracy of the {name}"][1] == pytest.approx(right / len(rows))
    # who agrees with a right teacher is right, so there are as many of them as questions that both get right
    both_right = sum(row["claims"][0]["claim"] and row["claims"][1]["claim"] for row in rows)
    right_part = found["agreement where the teacher is right"]
    assert isinstance(right_part[1], float) and isinstance(right_part[4], int)
    assert round(right_part[1] * right_part[4]) == both_right
    fidelity = found["fidelity (BLEU)"]
    assert isinstance(fidelity[1], float) and isinstance(fidelity[2], float) and 0.0 < fidelity[2] < fidelity[1] < 1.0


def test_answers_agree_by_value_and_an_answerless_teacher_is_unknown() -> None:
    def row(teacher: str, student: str) -> Row:
        return {"answer": "3", "teacher": teacher, "student": student}

    judge = load("math")
    half = compare(row("so \\boxed{\\frac{1}{2}}", "so \\boxed{0.5}"), judge, bleu)
    assert (half.agree, half.teacher_right, half.student_right) == (True, False, False)
    assert compare(row("so \\boxed{2}", "so \\boxed{3}"), judge, bleu).agree is False
    assert compare(row("I do not know it", "so \\boxed{3}"), judge, bleu).agree is None
    with pytest.raises(Exception, match="no 'student'"):
        compare({"answer": "3", "teacher": "x"}, judge, bleu)


def test_bleu_limits() -> None:
    text = "She sells nine eggs a day for two dollars each"
    assert bleu(text, text) == pytest.approx(1.0)
    assert bleu("completely other words are here", text) < 0.05


def test_wilson_interval_by_formula() -> None:
    """p = 8/10, z = 1.96: centre (p + z^2/2n)/(1 + z^2/n), half z sqrt(p(1-p)/n + z^2/4n^2)/(1 + z^2/n)."""
    from rlkd.analysis.agreement import Comparison

    table = agreement_table([Comparison(at < 8, None, None, 0.5) for at in range(10)])
    name, value, low, high, count = table.rows[0]
    z, p, n = 1.959963984540054, 0.8, 10
    centre = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n)) / (1 + z * z / n)
    assert (name, value, count) == ("agreement", 0.8, 10)
    assert (low, high) == pytest.approx((centre - half, centre + half))
    assert table.rows[1][4] == 0 and table.rows[1][1] is None  # no teacher verdicts: nothing is made up


def test_improvement_tests_on_planted_effects() -> None:
    rng = np.random.default_rng(0)
    rows = []
    for method, gain in (("sft", 0.0), ("gkd", 0.2)):
        for size in (1.0, 2.0, 4.0, 8.0):
            improvement = gain + 0.1 / size + rng.normal(0, 0.005)
            rows.append({"method": method, "accuracy": 0.4 + improvement, "sft_accuracy": 0.4, "student_size": size})
    found = {str(row[0]): row for row in improvement_table(rows).rows}
    gains = np.array([row["accuracy"] - row["sft_accuracy"] for row in rows])  # type: ignore[operator]
    t = gains.mean() / (gains.std(ddof=1) / math.sqrt(len(gains)))
    assert found["improvement > 0 (t)"][1] == pytest.approx(t)
    assert isinstance(found["methods differ (F)"][2], float) and found["methods differ (F)"][2] < 1e-3
    rho = found["improvement with student_size (rho)"]
    assert isinstance(rho[1], float) and rho[1] < 0 and "fidelity" not in str(found)
    assert not any("sft_accuracy" in name for name in found), "a constant column correlates with nothing"


STEPS = tuple(float(step) for step in range(10, 1010, 20))


def law(step: float) -> float:
    return float(3.0 * step**-0.5)


def test_power_law_is_recovered() -> None:
    fit = fit_power_law(Curve(STEPS, tuple(map(law, STEPS))))
    assert (fit.slope, math.exp(fit.intercept), fit.deviation) == pytest.approx((-0.5, 3.0, 0.0), abs=1e-9)
    with pytest.raises(NumericsError, match="above 0"):
        fit_power_law(Curve((1.0, 2.0, 3.0), (1.0, 0.0, 1.0)))


@pytest.mark.parametrize("seed", range(20))
def test_break_is_found_where_it_is_and_nowhere_else(seed: int) -> None:
    noise = np.exp(np.random.default_rng(seed).normal(0, 0.02, len(STEPS)))
    straight = [law(step) * factor for step, factor in zip(STEPS, noise, strict=True)]
    assert power_law_break(Curve(STEPS, tuple(straight))) is None
    broken = [value * (1.0 if step < 500 else (step / 500) ** 1.5) for step, value in zip(STEPS, straight, strict=True)]
    found = power_law_break(Curve(STEPS, tuple(broken)))
    assert found is not None and 500 <= found <= 600


@pytest.mark.parametrize("seed", range(10))
def test_hacking_is_a_rise_of_golden_while_proxy_falls(seed: int) -> None:
    rng = np.random.default_rng(seed)
    noise = rng.normal(0, 0.003, (2, len(STEPS)))
    falling = tuple(law(step) + each for step, each in zip(STEPS, noise[0], strict=True))
    proxy = Curve(STEPS, falling)
    flat = tuple(0.5 + law(step) + each for step, each in zip(STEPS, noise[1], strict=True))
    turned = tuple(value + max(0.0, step - 400) * 5e-4 for step, value in zip(STEPS, flat, strict=True))
    assert teacher_hacking(proxy, Curve(STEPS, flat)) is None
    found = teacher_hacking(proxy, Curve(STEPS, turned))
    # d/dstep of 3 step^-0.5 equals -5e-4 at step (3000)^(2/3) = 208, so the lowest point is where the rise begins, 400
    assert found is not None and 350 <= found.turn <= 480 and found.rise > 0.1 and found.fall > 0
    # overfitting of both is something else: proxy rises too
    assert teacher_hacking(Curve(STEPS, turned), Curve(STEPS, turned)) is None


def test_curves_are_checked() -> None:
    with pytest.raises(NumericsError, match="rise"):
        Curve((1.0, 1.0), (1.0, 2.0))
    with pytest.raises(NumericsError, match="finite"):
        Curve((1.0,), (math.nan,))
    with pytest.raises(NumericsError, match="same steps"):
        teacher_hacking(Curve((1.0,), (1.0,)), Curve((2.0,), (1.0,)))


@pytest.mark.parametrize(
    ("teacher", "student", "distilled", "source"),
    [
        (0.5, 0.52, 0.53, "shared"),
        (0.9, 0.3, 0.8, "teacher"),
        (0.3, 0.9, 0.8, "student"),
        (0.4, 0.42, 0.9, "boosted"),
        (0.50, 0.42, 0.46, "boosted"),  # D_TS = 0.08: above alpha, below beta
    ],
)
def test_source_rules(teacher: float, student: float, distilled: float, source: str) -> None:
    assert source_of(teacher, student, distilled, alpha=0.05, beta=0.1) == source


def test_tracing_an_answer() -> None:
    text = "One. Two. Three."

    def scores(*probabilities: float) -> TokenScores:
        return TokenScores(tuple(map(math.log, probabilities)), tuple(sentences(text)))

    answer = trace_answer(text, True, (scores(0.9, 0.3, 0.5), scores(0.3, 0.9, 0.5), scores(0.9, 0.9, 0.5)))
    assert answer == TracedAnswer(("teacher", "student", "shared"), True)


def test_provenance_table_by_hand() -> None:
    right = [TracedAnswer(("teacher", "shared"), True)] * 3 + [TracedAnswer(("shared",), True)]
    wrong = [TracedAnswer(("student", "shared"), False)] * 4
    assert source_curves(right, 3)["teacher"] == [0.75, 0.0]
    assert source_curves(right, 4)["teacher"] == [0.75], "only three answers have a second sentence"
    rows = {row[0]: row[1:] for row in provenance_table(right + wrong, 3).rows}
    assert rows["teacher"] == pytest.approx((3 / 7, 0.0, (0.75 + 0.0) / 2))
    assert rows["student"] == pytest.approx((0.0, 0.5, (-1.0 + 0.0) / 2))
    assert rows["shared"] == pytest.approx((4 / 7, 0.5, (0.25 + 0.0) / 2))


def test_tables() -> None:
    table = Table("T", ("a", "b"), (("x", 0.123456), ("y", None)))
    assert table.markdown().splitlines()[2:] == ["| a | b |", "| --- | --- |", "| x | 0.1235 |", "| y | - |"]
    assert list(csv.reader(table.csv().splitlines())) == [["a", "b"], ["x", "0.123456"], ["y", ""]]


def test_commands_write_table_and_picture(tmp_path: Path, gsm8k_traces: list[Row]) -> None:
    write_rows(tmp_path / "rows.jsonl", traced(gsm8k_traces, 12))
    metrics = [{"step": int(step), "kl": law(step), "golden": 1 - law(step)} for step in STEPS] + [{"other": 1}]
    write_rows(tmp_path / "metrics.jsonl", metrics)
    out = str(tmp_path / "out")
    runner = CliRunner()
    commands = {
        "agreement": ["agreement", str(tmp_path / "rows.jsonl"), "--out", out],
        "hacking": ["hacking", str(tmp_path / "metrics.jsonl"), "--out", out, "--proxy", "kl", "--golden", "golden"],
    }
    for name, command in commands.items():
        result = runner.invoke(app, command, catch_exceptions=False)
        assert result.exit_code == 0 and (tmp_path / "out" / f"{name}.md").read_text() in result.output + "\n"
        assert (tmp_path / "out" / f"{name}.png").read_bytes().startswith(b"\x89PNG")
        assert len(list(csv.reader((tmp_path / "out" / f"{name}.csv").read_text().splitlines()))) > 2
    # golden rises from the first point on while proxy falls: hacking, at the first step
    assert "| teacher hacking | yes |" in (tmp_path / "out" / "hacking.md").read_text()
    assert not list((tmp_path / "out").glob("*.tmp"))
    missing = runner.invoke(app, ["hacking", str(tmp_path / "metrics.jsonl"), "--out", out, "--proxy", "loss"])
    assert missing.exit_code != 0 and "'loss' is not there; numbers there: golden, kl" in str(missing.exception)


def test_a_proxy_without_a_power_law_is_drawn(tmp_path: Path) -> None:
    write_rows(tmp_path / "metrics.jsonl", [{"step": step, "kl": 0.1 - 0.01 * step} for step in range(1, 20)])
    command = ["hacking", str(tmp_path / "metrics.jsonl"), "--out", str(tmp_path), "--proxy", "kl"]
    said = CliRunner().invoke(app, command, catch_exceptions=False).output
    assert "| points | 19 |" in said and "power law" not in said
    assert (tmp_path / "hacking.png").is_file()


def test_steps_that_begin_again_need_a_stage(tmp_path: Path) -> None:
    rows = [{"stage": stage, "step": int(step), "kl": law(step)} for stage in ("warm", "rl") for step in STEPS]
    write_rows(tmp_path / "metrics.jsonl", [*rows, {"stage": "sft", "step": 1}])
    command = ["hacking", str(tmp_path / "metrics.jsonl"), "--out", str(tmp_path), "--proxy", "kl"]
    assert "give --stage, one of warm, rl" in str(CliRunner().invoke(app, command).exception)
    said = CliRunner().invoke(app, [*command, "--stage", "rl"], catch_exceptions=False).output
    assert f"| points | {len(STEPS)} |" in said
    wrong = CliRunner().invoke(app, [*command, "--stage", "warn"])
    assert "no stage 'warn'; did you mean 'warm'" in str(wrong.exception)


def test_an_accuracy_that_falls_is_a_golden_distance_that_rises(tmp_path: Path) -> None:
    rows = [{"step": int(step), "kl": law(step), "eval/pass@1": 0.9 - 0.3 * (1 - law(step))} for step in STEPS]
    write_rows(tmp_path / "metrics.jsonl", rows)
    command = ["hacking", str(tmp_path / "metrics.jsonl"), "--out", str(tmp_path), "--proxy", "kl"]
    said = CliRunner().invoke(app, [*command, "--accuracy", "eval/pass@1"], catch_exceptions=False).output
    assert "| teacher hacking | yes |" in said
    wrong = CliRunner().invoke(app, [*command, "--accuracy", "eval/pas@1"])
    assert "did you mean 'eval/pass@1'" in str(wrong.exception)
    both = CliRunner().invoke(app, [*command, "--accuracy", "eval/pass@1", "--golden", "kl"])
    assert "not both" in str(both.exception)


def test_density_by_teacher_and_temperature() -> None:
    def scores(*probabilities: float) -> TokenScores:
        return TokenScores(tuple(map(math.log, probabilities)), ((0, 1),) * len(probabilities))

    traces: list[Row] = [
        {"model": "t", "temperature": 0.6},
        {"model": "t", "temperature": 1.0},
        {"model": "t", "temperature": 1.0},
        {"model": "t", "temperature": 1.0},
        {"model": "other"},
    ]
    groups = group_scores(traces, [scores(0.9, 0.4), scores(0.5), scores(0.5, 0.5, 0.5), scores(), scores(0.25)])
    rows = {row[0]: row[1:] for row in density_table(groups).rows}
    assert rows["t at 0.6"][:3] == pytest.approx((1, 2, -(math.log(0.9) + math.log(0.4)) / 2))
    assert rows["t at 1.0"][:3] == pytest.approx((2, 4, math.log(2)))
    assert rows["t at 1.0"][3:] == pytest.approx((0.5, 0.5, 0.5))
    assert rows["t at 0.6"][4] == pytest.approx(0.6)  # sqrt(0.9 * 0.4)
    assert rows["other"][:2] == (1, 1)
    with pytest.raises(DataCardError, match="nothing to plot"):
        group_scores([{"model": "t"}], [scores()])


def test_nats_of_a_model_on_its_own_samples_are_its_entropy() -> None:
    p = np.array([0.5, 0.3, 0.2])
    draws = np.random.default_rng(0).choice(3, size=200_000, p=p)
    groups = group_scores([{}], [TokenScores(tuple(np.log(p)[draws].tolist()), ((0, 1),) * len(draws))])
    assert density_table(groups).rows[0][3] == pytest.approx(-(p * np.log(p)).sum(), abs=5e-3)


def test_provenance_command_with_real_models(tmp_path: Path, smollm2: Path, gsm8k_traces: list[Row]) -> None:
    """Teacher, student and distilled model are the same one: every sentence is shared.

    What is right may be said in words; an answer of which nothing is known is on neither side.
    """
    texts = [(row["question"], row["traces"][0]["text"]) for row in gsm8k_traces[:3]]
    said = ("True", "False", None)
    rows = [
        {"question": question, "text": text, "right": right}
        for (question, text), right in zip(texts, said, strict=True)
    ]
    write_rows(tmp_path / "rows.jsonl", rows)
    models = [part for name in ("teacher", "student", "distilled") for part in (f"--{name}", str(smollm2))]
    command = [
        "provenance",
        str(tmp_path / "rows.jsonl"),
        "--out",
        str(tmp_path / "out"),
        "--min-answers",
        "1",
        *models,
    ]
    result = CliRunner().invoke(app, command, catch_exceptions=False)
    assert result.exit_code == 0 and "| shared | 1 | 1 | 0 |" in result.output
    assert "1 right and 1 wrong answers" in result.output
    assert (tmp_path / "out" / "provenance.png").is_file()
    write_rows(tmp_path / "rows.jsonl", [*rows, {**rows[0], "right": "perhaps"}])
    wrong = CliRunner().invoke(app, command)
    assert "row 4, 'right': 'perhaps' says neither right nor wrong" in str(wrong.exception)
