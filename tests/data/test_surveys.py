"""Steps that look at all rows before they decide: DDK's domain weights and DED's teacher trial."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from rlkd.data.curate import Step, build_step, curate, curated_rows
from rlkd.data.curate.ddk import domain_weights
from rlkd.data.curate.score import TokenScores
from rlkd.data.rows import Row, good_rows, write_rows
from rlkd.errors import DataCardError, RlkdError

RECIPE = Path(__file__).resolve().parents[2] / "recipes" / "grpo.yaml"
SIZES = {"algebra": 300, "geometry": 60, "logic": 40}


class Scorer:
    """Gives every token of a domain's traces one probability; counts what it is asked."""

    def __init__(self, perplexity: Mapping[str, float]) -> None:
        self.perplexity, self.asked = perplexity, Counter[str]()

    def __call__(self, pairs: Sequence[tuple[str, str]]) -> list[TokenScores]:
        out = []
        for _, text in pairs:
            name, *rest = text.split()
            self.asked[name] += 1
            out.append(TokenScores((-math.log(self.perplexity[name]),) * (1 + len(rest)), ((0, 0),) * (1 + len(rest))))
        return out


def many(path: Path) -> Path:
    rows = [
        {"question": f"{name} {at}", "answer": "1", "topic": name, "traces": [{"text": f"{name} {'x ' * (at % 5)}"}]}
        for name, size in SIZES.items()
        for at in range(size)
    ]
    write_rows(path, rows)
    return path


STUDENT = {"algebra": 3.0, "geometry": 6.0, "logic": 3.0}
TEACHER = {"algebra": 3.0, "geometry": 2.0, "logic": 2.0}


def ddk(**settings: Any) -> tuple[Step, Scorer, Scorer]:
    student, teacher = Scorer(STUDENT), Scorer(TEACHER)
    spec = {"step": "domain_weights", "domain": "topic", "rows": 400, "sample": 50, **settings}
    return build_step(spec, student=student, teacher=teacher), student, teacher


def test_domains_are_drawn_by_how_far_the_student_lags(tmp_path: Path) -> None:
    step, student, teacher = ddk()
    _, report = curate(many(tmp_path / "rows.jsonl"), [step], tmp_path / "out", part_rows=90)
    weights = domain_weights(STUDENT, TEACHER)  # gaps 1, 3 and 1.5
    assert report.survey["weights"] == pytest.approx(weights)
    assert report.survey["perplexities"]["geometry"] == pytest.approx({"student": 6.0, "teacher": 2.0})
    assert student.asked == teacher.asked == {"algebra": 50, "geometry": 50, "logic": 40}
    assert f"geometry {60 / 400:.1%} -> {weights['geometry']:.1%}" in report.line()
    drawn = [row["row"] for row in curated_rows(tmp_path / "out")]
    domains = Counter(row["topic"] for row in curated_rows(tmp_path / "out"))
    for name, size in SIZES.items():
        expected = weights[name] * 400
        copies = expected / size
        deviation = math.sqrt(size * (copies % 1) * (1 - copies % 1))
        assert abs(domains[name] - expected) < 4 * deviation
    assert set(Counter(drawn).values()) == {1, 2, 4, 5}  # copies: 0.13, 4.91 and 1.64 a row
    assert report.removed == {"not drawn": 400 - len(set(drawn))}


def test_a_later_round_starts_from_the_weights_of_the_last(tmp_path: Path) -> None:
    before = {"algebra": 0.7, "geometry": 0.2, "logic": 0.1}
    step, _, _ = ddk(before=before, smooth=0.25)
    _, report = curate(many(tmp_path / "rows.jsonl"), [step], tmp_path / "out")
    assert report.survey["weights"] == pytest.approx(domain_weights(STUDENT, TEACHER, before=before, smooth=0.25))
    with pytest.raises(DataCardError, match=r"sum to 0\.9"):
        ddk(before={"algebra": 0.7, "geometry": 0.2})


def test_a_domain_without_traces_is_named(tmp_path: Path) -> None:
    write_rows(tmp_path / "rows.jsonl", [{"question": "q", "answer": "1", "topic": "void", "traces": [{"text": ""}]}])
    scorer = lambda pairs: [TokenScores((), ()) for _ in pairs]  # noqa: E731
    step = build_step({"step": "domain_weights", "domain": "topic", "rows": 1}, student=scorer, teacher=scorer)
    with pytest.raises(DataCardError, match="domain 'void'"):
        curate(tmp_path / "rows.jsonl", [step], tmp_path / "out")


def test_a_draw_that_died_goes_on_without_measuring_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = many(tmp_path / "rows.jsonl")
    curate(source, [ddk()[0]], tmp_path / "whole", part_rows=90)
    calls = 0
    write = write_rows

    def dying(path: Path, rows: list[Row]) -> int:
        nonlocal calls
        calls += path.parent.name.startswith("01-")
        if calls == 5:  # two files a part
            raise RuntimeError
        return write(path, rows)

    monkeypatch.setattr("rlkd.data.curate.run.write_rows", dying)
    with pytest.raises(RuntimeError):
        curate(source, [ddk()[0]], tmp_path / "out", part_rows=90)
    monkeypatch.undo()
    step, student, _ = ddk()
    _, report = curate(source, [step], tmp_path / "out", part_rows=90)
    assert report.reused_parts == 2 and not student.asked
    assert list(curated_rows(tmp_path / "out")) == list(curated_rows(tmp_path / "whole"))


def taught(path: Path) -> Path:
    """Three teachers; c leaves every second question out, b's even ones are labelled wrong."""
    rows: list[Row] = []
    for at in range(40):
        traces: list[Row] = [{"text": f"a{at}", "model": "a"}, {"text": f"b{at}", "model": "b"}]
        traces += [{"text": f"c{at}", "model": "c"}] if at % 2 else []
        traces[1]["right"] = bool(at % 2) or None
        rows.append({"id": f"r{at}", "question": f"q{at}", "answer": str(at), "traces": traces})
    rows[1]["traces"][1]["right"] = False
    del rows[3]["answer"]
    write_rows(path, rows)
    return path


def trial_step(size: int, run: Any) -> Step:
    return build_step({"step": "teacher_trial", "recipe": str(RECIPE), "size": size, "seed": 3}, run=run)


SCORES = {"a": 0.3, "b": 0.6, "c": 0.58}


def scored(sample: Path, _: Path) -> dict[str, Any]:
    score = SCORES[sample.name[0]]
    return {"pass@1": score, "ci95": [score - 0.05, score + 0.05], "n": 100}


def test_the_teacher_whose_sample_makes_the_best_student_is_kept(tmp_path: Path) -> None:
    _, report = curate(taught(tmp_path / "rows.jsonl"), [trial_step(12, scored)], tmp_path / "out", part_rows=7)
    samples = {path.name[0]: list(good_rows(path)) for path in (tmp_path / "out").glob("01-*/trials/*.jsonl")}
    questions = {teacher: [row["question"] for row in rows] for teacher, rows in samples.items()}
    assert questions["a"] == questions["b"] == questions["c"] and len(set(questions["a"])) == 12
    assert all(int(q[1:]) % 2 for q in questions["a"]) and not {"q1", "q3"} & set(questions["a"])
    assert questions["a"] != sorted(questions["a"], key=lambda q: int(q[1:])), "drawn, not the first ones"
    assert all(row["solution"] == f"b{row['answer']}" for row in samples["b"])
    assert report.survey["best"] == "b"
    assert "kept b; the interval of c overlaps" in report.line() and "of a" not in report.line()
    kept = list(curated_rows(tmp_path / "out"))
    assert len(kept) == 40 and {trace["model"] for row in kept for trace in row["traces"]} == {"b"}
    assert report.removed == {"another teacher": 40 + 20}


def test_a_trial_that_died_does_not_change_the_choice(tmp_path: Path) -> None:
    tried: list[str] = []

    def dying(sample: Path, out: Path) -> dict[str, Any]:
        tried.append(sample.name[0])
        if sample.name[0] == "c":
            raise RuntimeError
        return scored(sample, out)

    source = taught(tmp_path / "rows.jsonl")
    with pytest.raises(RuntimeError):
        curate(source, [trial_step(5, dying)], tmp_path / "out")
    assert tried == ["a", "b", "c"] and not (tmp_path / "out" / "report.json").exists()
    with pytest.raises(DataCardError, match="other settings"):  # its trials are of another sample
        curate(source, [trial_step(6, scored)], tmp_path / "out")
    assert len(list(good_rows(next((tmp_path / "out").glob("01-*/trials/a*.jsonl"))))) == 5
    curate(source, [trial_step(5, scored)], tmp_path / "out")
    curate(source, [trial_step(5, dying)], tmp_path / "out")  # all found: nothing is tried again
    assert tried == ["a", "b", "c"]
    assert json.loads((tmp_path / "out/01-teacher_trial/report.json").read_text())["survey"]["best"] == "b"


def test_a_trial_needs_teachers_rows_and_a_recipe_that_can_tell_them_apart(tmp_path: Path) -> None:
    source = taught(tmp_path / "rows.jsonl")
    with pytest.raises(DataCardError, match=r"share 18 rows; teacher_trial needs size=19"):
        curate(source, [trial_step(19, scored)], tmp_path / "few")
    write_rows(tmp_path / "one.jsonl", [{"question": "q", "answer": "1", "traces": [{"text": "t", "model": "solo"}]}])
    with pytest.raises(DataCardError, match=r"there is \['solo'\]"):
        curate(tmp_path / "one.jsonl", [trial_step(1, scored)], tmp_path / "one")
    spec: dict[str, Any] = {"step": "teacher_trial", "recipe": str(RECIPE), "size": 4}
    with pytest.raises(DataCardError, match=r"no SFT stage 'cold' of the policy. it has"):
        build_step({**spec, "stage": "cold"})
    with pytest.raises(DataCardError, match=r"no data\.eval"):
        build_step({**spec, "overrides": ["data.eval=null", "eval={}"]})
    with pytest.raises(RlkdError, match=r"nowhere\.yaml"):
        build_step({**spec, "recipe": "nowhere.yaml"})


@pytest.mark.engine
def test_a_trial_is_a_run_of_the_recipe(tmp_path: Path) -> None:
    """Real training on two teachers' traces: one gives the answer, the other none."""
    rows = [
        {
            "question": f"{at} + {7 - at} =",
            "answer": "7",
            "traces": [{"text": text, "model": name} for name, text in each],
        }
        for at in range(8)
        for each in ([("clear", "7"), ("vague", "who knows")],)
    ]
    write_rows(tmp_path / "rows.jsonl", rows)
    write_rows(tmp_path / "held_out.jsonl", [{"question": f"{at}+{7 - at}=", "answer": "7"} for at in range(8)])
    stages = "[{kind: sft, name: sft, steps: 30, batch_size: 8, max_length: 72, optim: {lr: 2.0e-3, warmup_steps: 1}}]"
    overrides = [
        f"data.train={{kind: file, path: {tmp_path / 'rows.jsonl'}}}",
        f"data.eval={{kind: file, path: {tmp_path / 'held_out.jsonl'}}}",
        f"stages={stages}",
        "eval.samples=1",
        "eval.temperature=0.0",
    ]
    spec = {"step": "teacher_trial", "recipe": str(RECIPE), "size": 8, "overrides": overrides}
    _, report = curate(tmp_path / "rows.jsonl", [build_step(spec)], tmp_path / "out")
    trials = report.survey["trials"]
    assert {name: (each["pass@1"], each["n"]) for name, each in trials.items()} == {
        "clear": (1.0, 8),
        "vague": (0.0, 8),
    }
    assert {trace["text"] for row in curated_rows(tmp_path / "out") for trace in row["traces"]} == {"7"}
    (
        tmp_path / "out/01-teacher_trial/survey.json"
    ).unlink()  # as a kill before the choice leaves it: no run is repeated
    _, again = curate(tmp_path / "rows.jsonl", [build_step({**spec})], tmp_path / "out")
    assert again.survey == report.survey
