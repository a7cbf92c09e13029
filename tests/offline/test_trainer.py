"""The loop around the learner: what a collapse does, and what the report makes of an offline run."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
from test_collapse import collapsing

from rlkd.data.rows import write_rows
from rlkd.errors import CollapseError
from rlkd.recipe.offline import FilePairs
from rlkd.recipe.schema import OfflineStage
from rlkd.records import Example, Prompt
from rlkd.report.page import write_report
from rlkd.trainer.context import Run
from rlkd.trainer.learners import Learners
from rlkd.trainer.offline import OfflineTrainer
from rlkd.trainer.pair_file import PairFile
from rlkd.trainer.publication import Publication

FIGURES = collapsing(random.Random(0))


class Learner:
    """Answers with the figures of a run that collapses; what it would learn is not the matter here."""

    def __init__(self) -> None:
        self.updates: list[Any] = []

    def submit(self, method: str, *given: Any, **_: Any) -> Any:
        if method != "train_step":
            return None
        self.updates += given[0]
        right, wrong, norm = FIGURES[len(self.updates) - 1]
        figures = {"right": right, "wrong": wrong}
        terms = {row.term for row in given[0][0].rows}
        counts = {f"{term}_logprob": (figures[term], 1.0) for term in terms} | {"grad_norm": (norm, 1.0)}
        return {**counts, "loss": (-right, 0.0)}, {}


@pytest.fixture
def trainer(
    tmp_path: Path, recipe: Any, engineless_run: Any, monkeypatch: pytest.MonkeyPatch, request: Any
) -> OfflineTrainer:
    stage = OfflineStage(name="redi", pairs=FilePairs(path="x"), steps=len(FIGURES), batch_size=2, **request.param)
    ids = {"prompt_ids": [1, 2], "right_ids": [3], "wrong_ids": [4, 5]}
    write_rows(tmp_path / "pairs.jsonl", [{"id": str(at), "question": "q", **ids} for at in range(3)])
    (tmp_path / "recipe.json").write_text(recipe.model_dump_json())
    rarely = recipe.checkpoint.model_copy(update={"every": 1000})
    run = engineless_run(recipe.model_copy(update={"checkpoint": rarely}), tmp_path)
    monkeypatch.setattr(Learners, "write_policy", lambda *_: None)
    monkeypatch.setattr(OfflineTrainer, "_start", lambda self: self.learners.workers.append(Learner()))
    pairs = PairFile(tmp_path / "pairs.jsonl")
    return OfflineTrainer(run=run, stage=stage, pairs=pairs, source=tmp_path, checkpoints=tmp_path / "checkpoints")


def lines(trainer: OfflineTrainer) -> list[dict[str, Any]]:
    text = (trainer.run.folder.path / "metrics.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


@pytest.mark.parametrize("trainer", [{"collapse": {"action": "warn"}}], indirect=True)
def test_a_warning_is_an_event_and_the_run_goes_on(trainer: OfflineTrainer, capsys: Any) -> None:
    result = trainer.train(trainer.source / "policy")
    rows = lines(trainer)
    assert len(rows) == len(FIGURES) == result["steps"]
    events = [row["step"] for row in rows if row.get("event") == "collapse"]
    assert len(events) == result["collapses"] == 1
    assert f"collapse at update {events[0]}" in " ".join(capsys.readouterr().out.split())
    assert trainer.run.tokens["trained"] == len(FIGURES) * 2 * 3  # two pairs of 1 + 2 tokens an update


@pytest.mark.parametrize("trainer", [{"collapse": {"action": "stop"}}], indirect=True)
def test_a_stop_is_a_named_error_after_its_metrics(trainer: OfflineTrainer) -> None:
    with pytest.raises(CollapseError, match=r"stages\.redi: collapse at update \d+: right traces"):
        trainer.train(trainer.source / "policy")
    rows = lines(trainer)
    assert [row.get("event") for row in rows].index("collapse") == len(rows) - 1 < len(FIGURES) - 1
    assert "right traces, log-prob" in write_report(trainer.source).read_text(encoding="utf-8")  # an unfinished run


@pytest.mark.parametrize("trainer", [{"collapse": {"action": "off"}}], indirect=True)
def test_an_update_divides_by_its_pairs(trainer: OfflineTrainer) -> None:
    trainer.train(trainer.source / "policy")
    learner: Any = trainer.learners.workers[0]
    assert {update.denominators.policy for update in learner.updates} == {2.0}
    assert all([row.term for row in update.rows] == ["right", "wrong"] * 2 for update in learner.updates)
    assert not any("event" in row for row in lines(trainer))


@pytest.mark.parametrize("trainer", [{"objective": {"kind": "sft"}}], indirect=True)
def test_right_traces_alone_cost_no_pass_over_wrong_ones(trainer: OfflineTrainer) -> None:
    trainer.train(trainer.source / "policy")
    learner: Any = trainer.learners.workers[0]
    assert all([row.term for row in update.rows] == ["right", "right"] for update in learner.updates)
    assert {update.denominators.policy for update in learner.updates} == {2.0}  # pairs, not rows
    assert trainer.run.tokens["trained"] == len(FIGURES) * 2 * 1
    assert not any({"wrong_logprob", "margin", "event"} & row.keys() for row in lines(trainer))


@pytest.mark.parametrize("trainer", [{"collapse": {"action": "off"}}], indirect=True)
def test_held_out_accuracy_between_updates(trainer: OfflineTrainer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every third update: the engines get the device and the new weights, measure, and hand the device back."""
    run, done = trainer.run, list[Any]()
    run.recipe = run.recipe.model_copy(update={"eval": run.recipe.eval.model_copy(update={"every": 3})})
    run.eval_prompts = [Prompt(Example("e", "1 + 1?", "2"), "", (1, 2))]
    trainer.total = 9

    def start(run: Any, _: Path) -> None:
        done.append("start")
        run.rollouts = "fleet"

    def evaluate(_: Run, fleet: Any, label: str) -> dict[str, Any]:
        done.append((fleet, label))
        return {"pass@1": len(done)}

    monkeypatch.setattr(Run, "start_rollouts", start)
    monkeypatch.setattr(Run, "turn", lambda _, method: done.append(method))
    monkeypatch.setattr(Run, "evaluate", evaluate)
    monkeypatch.setattr(Publication, "publish", lambda _, fleet, version: done.append((fleet, version)))
    trainer.train(trainer.source / "policy")
    measured = {row["step"]: row["eval/pass@1"] for row in lines(trainer) if "eval/pass@1" in row}
    first = ["wake", ("fleet", 3), ("fleet", "redi, update 3"), "sleep"]
    second = ["wake", ("fleet", 6), ("fleet", "redi, update 6"), "sleep"]
    assert done == ["start", "sleep", *first, *second, "wake"]  # the ninth is the last: the run measures its policy
    assert measured == {3: 5, 6: 9}
