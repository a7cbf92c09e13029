"""Early stop: which problems are watched, when a stage ends, which policy it hands on, and that a kill changes none."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from rollout_groups import group

from reward.verdict import Verdict
from rlkd.errors import RecipeError
from rlkd.evaluate import ProblemScore, by_problem
from rlkd.recipe import Recipe, validate_recipe
from rlkd.recipe.schema import EarlyStopSpec, RlStage
from rlkd.trainer import rl
from rlkd.trainer.context import Run
from rlkd.trainer.early_stop import EarlyStop
from rlkd.trainer.learners import Learners
from rlkd.trainer.rl import RlTrainer

RIGHT, WRONG, LATE = Verdict.right("1"), Verdict.wrong("2"), Verdict.abstain("timeout")


def _scores(*pairs: tuple[float, float]) -> dict[str, ProblemScore]:
    return {f"p{at}": ProblemScore(score, tokens) for at, (score, tokens) in enumerate(pairs)}


def test_scores_are_means_over_the_judged_samples_of_a_problem() -> None:
    groups = [group("a", [2, 4]), group("b", [1, 9]), group("c", [5, 5])]
    verdicts = [RIGHT, WRONG, WRONG, LATE, LATE, LATE]
    assert by_problem(groups, verdicts) == {"a": ProblemScore(0.5, 3.0), "b": ProblemScore(0.0, 1.0)}


@pytest.mark.parametrize(
    ("quarter", "watched"),
    [(None, {"p0", "p1", "p2", "p3", "p4", "p5"}), (1, {"p5"}), (2, {"p0", "p3"}), (3, {"p4"}), (4, {"p1", "p2"})],
)
def test_quarters_share_the_problems_out_by_length(quarter: Any, watched: set[str], tmp_path: Path) -> None:
    watch = EarlyStop(EarlyStopSpec(length_quarter=quarter), tmp_path)
    watch.begin(_scores((1, 20), (1, 60), (0, 50), (0, 30), (0, 40), (0, 10)))  # shortest first: 5 0 3 4 2 1
    assert set(watch.problems) == watched


def test_the_watched_problems_stay_the_same_when_lengths_change(tmp_path: Path) -> None:
    """p3 is the longest at the start; later it is the shortest, and right, while what is longest then is wrong."""
    watch = EarlyStop(EarlyStopSpec(length_quarter=4), tmp_path)
    watch.begin(_scores((1, 1), (1, 2), (1, 3), (0, 4)))
    assert watch.best == 0.0
    assert watch.note(5, _scores((0, 9), (0, 8), (0, 7), (1, 1))) == 1.0
    assert (watch.best_step, watch.stops) == (5, False)


def test_patience_counts_evaluations_without_a_rise_in_a_row(tmp_path: Path) -> None:
    watch = EarlyStop(EarlyStopSpec(patience=2), tmp_path)
    watch.begin(_scores((0.5, 1)))
    told = []
    for step, score in enumerate([0.5, 0.6, 0.6, 0.1], 1):
        watch.note(step, _scores((score, 1)))
        told.append(watch.stops)
    assert told == [False, False, False, True]
    assert (watch.best, watch.best_step) == (0.6, 2)


def test_an_empty_quarter_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"early_stop\.length_quarter: 1 holds none of the 2"):
        EarlyStop(EarlyStopSpec(length_quarter=1), tmp_path).begin(_scores((1, 1), (1, 2)))


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"every": 0}, "write eval.every"), ({"every": 2, "no_rl": True}, "no stage of kind 'rl'")],
)
def test_a_watch_without_evaluations_is_refused(recipe: Recipe, changes: dict[str, Any], message: str) -> None:
    raw = recipe.model_dump(mode="json")
    raw["eval"] |= {"every": changes["every"], "early_stop": {}}
    if changes.get("no_rl"):
        raw["stages"] = [stage for stage in raw["stages"] if stage["kind"] != "rl"]
    with pytest.raises(RecipeError, match=message):
        validate_recipe(raw, where="test")


# ---------------------------------------------------------------- the stage's loop, without engines


class _Learner:
    """Its weights are the number of the step that it has made."""

    made = 0

    def submit(self, method: str, *given: Any, **_: Any) -> None:
        if method == "save":
            Path(given[0]).mkdir(parents=True)
            (Path(given[0]) / "made").write_text(str(self.made))
        elif method == "load":
            self.made = int((Path(given[0]) / "made").read_text())


class _KilledError(Exception):
    pass


NewTrainer = Callable[..., RlTrainer]


@pytest.fixture
def new_trainer(
    recipe: Recipe, engineless_run: Callable[[Recipe, Path], Run], monkeypatch: pytest.MonkeyPatch
) -> NewTrainer:
    """``(place, accuracy, kill=0)``: a stage whose steps are counted, not trained."""

    def write(self: Any, output: Path) -> None:
        output.mkdir(parents=True)
        (output / "weights").write_text(str(self.workers[0].made))

    monkeypatch.setattr(rl, "gather", lambda calls, _: calls)
    monkeypatch.setattr(rl, "check_contract", lambda *_: None)
    monkeypatch.setattr(Learners, "write_policy", write)
    raw = recipe.model_dump(mode="json")
    raw["eval"] |= {"every": 2, "early_stop": {"patience": 2}}
    raw["checkpoint"] = {"every": 3, "keep": 2}
    chosen = validate_recipe(raw, where="test")
    return lambda place, accuracy, kill=0: _trainer(engineless_run(chosen, place), accuracy, kill)


def _trainer(run: Run, accuracy: Sequence[float], kill: int) -> RlTrainer:
    """``accuracy[n]``: held-out accuracy after n steps. ``kill``: dies in the step after so many."""
    place, learner = run.folder.path, _Learner()
    run.rollouts = SimpleNamespace()  # type: ignore[assignment]

    def evaluate(*_: Any) -> dict[str, float]:
        run.problem_scores = _scores((accuracy[learner.made], 1.0))
        return {"pass@1": accuracy[learner.made]}

    run.evaluate = evaluate  # type: ignore[method-assign, assignment]
    stage = RlStage(name="stage", steps=len(accuracy) - 1)
    trainer = RlTrainer(run, stage, place / "source", {}, place / "checkpoints")
    trainer.learners.workers.append(learner)  # type: ignore[arg-type]

    def step(at: int, *_: Any) -> dict[str, Any]:
        assert learner.made == at
        if kill and at == kill:
            raise _KilledError
        learner.made += 1
        return {"step": at + 1, **trainer._evaluate(at + 1)}

    trainer._step = step  # type: ignore[method-assign, assignment]
    trainer.publication = SimpleNamespace(publish=lambda *_: None)  # type: ignore[assignment]
    trainer._start_workers = lambda: None  # type: ignore[method-assign]
    return trainer


def _run(place: Path, trainer: RlTrainer) -> tuple[dict[str, Any], str, list[dict[str, Any]]]:
    result = trainer.train(place / "policy")
    rows = [json.loads(line) for line in (place / "metrics.jsonl").read_text().splitlines()]
    return result, (place / "policy" / "weights").read_text(), rows


def _place(tmp_path: Path) -> Path:
    (tmp_path / "source").mkdir(parents=True)
    (tmp_path / "source" / "weights").write_text("source")
    return tmp_path


RISE_AND_FALL = [0.1, 0.0, 0.3, 0.9, 0.5, 0.9, 0.4, 0.0, 0.5, 0.0, 0.0]  # read at 2, 4, 6, 8: best at 4


def test_a_stage_stops_and_hands_on_its_best_policy(tmp_path: Path, new_trainer: NewTrainer) -> None:
    result, weights, rows = _run(tmp_path, new_trainer(_place(tmp_path), RISE_AND_FALL))
    assert result == {"steps": 8, "stopped_early": True, "best_step": 4}
    assert weights == "4"
    assert [row.get("eval/watched") for row in rows] == [None, 0.3, None, 0.5, None, 0.4, None, 0.5]
    assert [path.name for path in (tmp_path / "checkpoints").glob("best-*")] == ["best-000004"]


def test_a_policy_that_only_falls_hands_on_the_one_it_began_with(tmp_path: Path, new_trainer: NewTrainer) -> None:
    result, weights, _ = _run(tmp_path, new_trainer(_place(tmp_path), [0.5, 0, 0.5, 0, 0.4, 0, 0.4]))
    assert (result, weights) == ({"steps": 4, "stopped_early": True, "best_step": 0}, "source")


def test_the_last_step_may_be_the_best(tmp_path: Path, new_trainer: NewTrainer) -> None:
    result, weights, _ = _run(tmp_path, new_trainer(_place(tmp_path), [0.0, 0.0, 0.1, 0.9]))
    assert (result, weights) == ({"steps": 3, "stopped_early": False, "best_step": 3}, "3")


@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")  # the killed stage's metrics
@pytest.mark.parametrize("kill", range(1, 8))
def test_a_killed_stage_ends_as_an_undisturbed_one(tmp_path: Path, new_trainer: NewTrainer, kill: int) -> None:
    calm, disturbed = (_place(tmp_path / name) for name in ("calm", "disturbed"))
    wanted = _run(calm, new_trainer(calm, RISE_AND_FALL))
    with pytest.raises(_KilledError):
        new_trainer(disturbed, RISE_AND_FALL, kill=kill).train(disturbed / "policy")
    assert _run(disturbed, new_trainer(disturbed, RISE_AND_FALL)) == wanted


@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")
def test_a_stage_without_a_step_left_hands_on_its_policy(tmp_path: Path, new_trainer: NewTrainer) -> None:
    """Killed in the fifth step with a checkpoint at the fourth, continued as a stage of four steps."""
    with pytest.raises(_KilledError):
        new_trainer(_place(tmp_path), RISE_AND_FALL, kill=4).train(tmp_path / "policy")
    result, weights, rows = _run(tmp_path, new_trainer(tmp_path, RISE_AND_FALL[:5]))
    assert (result, weights) == ({"steps": 4, "stopped_early": False, "best_step": 4}, "4")
    assert [row["step"] for row in rows] == [1, 2, 3, 4]
