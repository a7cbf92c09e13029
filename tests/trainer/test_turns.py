"""Who starts when, where and with how much of a GPU, by the number of GPUs. Ray, vLLM and DeepSpeed are only asked."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from rlkd.cluster import Hardware, settle
from rlkd.recipe import load_recipe
from rlkd.recipe.schema import RlStage
from rlkd.trainer import context, fleet, rl, teachers
from rlkd.trainer.console import Console
from rlkd.trainer.context import Run
from rlkd.trainer.rl import RlTrainer

KDRL = Path(__file__).parents[2] / "recipes" / "kdrl.yaml"
ENGINE, TEACHER, LEARNER = "RolloutWorker-0", "TeacherWorker-0", "LearnerWorker-kdrl-0"


class Asked:
    """Stands where the cluster does and writes down what it is asked for."""

    def __init__(self, gpus: int) -> None:
        self.hardware = Hardware(cpus=16, gpus=gpus)
        self.log: list[tuple[str, str]] = []
        self.places: dict[str, tuple[float, Any]] = {}

    def pairs(self, count: int) -> list[tuple[str, int]]:
        return [("group", index) for index in range(count)]

    def spawn(self, name: str, *, gpus: float, bundle: Any) -> Any:
        self.places[name] = (gpus, bundle)
        return SimpleNamespace(name=name, submit=lambda method: self.log.append((name, method)))

    def build(self, worker: Any, *_: Any, **__: Any) -> None:
        self.log.append((worker.name, "start"))

    def address(self, _: Any) -> tuple[str, int]:
        return "here", 1


def started(gpus: int, overrides: list[str], monkeypatch: pytest.MonkeyPatch) -> tuple[RlTrainer, Asked]:
    for module in (context, fleet, rl, teachers):
        monkeypatch.setattr(module, "gather", lambda calls, _: calls)
    asked, no = Asked(gpus), Any
    recipe = settle(load_recipe(KDRL, overrides), asked.hardware)
    run = Run(recipe, no, asked, Console(), no, no, train_prompts=[], eval_prompts=[], pool=no)  # type: ignore[arg-type]
    stage = RlStage(name="kdrl", steps=3)
    folders = {name: Path(name) for name in ("teacher", "sums", "words")}
    trainer = RlTrainer(run, stage, Path("policy"), folders, Path("checkpoints"))
    trainer._start_workers()
    return trainer, asked


def test_on_one_gpu_each_gets_room_before_the_next_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    trainer, asked = started(1, [], monkeypatch)
    engines = [(ENGINE, "start"), (ENGINE, "sleep"), (TEACHER, "start"), (TEACHER, "sleep")]
    assert asked.log == [*engines, (LEARNER, "start"), (ENGINE, "wake"), (TEACHER, "wake")]
    assert set(asked.places.values()) == {(0.3333, ("group", 0))}
    asked.log.clear()
    trainer._turn("sleep")
    assert asked.log == [(ENGINE, "sleep"), (TEACHER, "sleep")]


def test_teachers_of_several_domains_start_one_after_the_other(monkeypatch: pytest.MonkeyPatch) -> None:
    model = "{model: {kind: pretrained, path: ours}}"
    routed = f"teacher={{kind: routed, field: domain, default: sums, teachers: {{sums: {model}, words: {model}}}}}"
    stages = "stages=[{kind: rl, name: kdrl, steps: 3}]"
    _, asked = started(1, [routed, stages], monkeypatch)
    first, second = "TeacherWorker-sums-0", "TeacherWorker-words-0"
    assert asked.log[2:6] == [(first, "start"), (first, "sleep"), (second, "start"), (second, "sleep")]
    assert asked.places[first] == asked.places[second] == (0.25, ("group", 0))


def test_on_two_gpus_the_teacher_has_one_and_never_leaves_it(monkeypatch: pytest.MonkeyPatch) -> None:
    trainer, asked = started(2, [], monkeypatch)
    assert asked.places == {ENGINE: (0.5, ("group", 0)), LEARNER: (0.5, ("group", 0)), TEACHER: (1.0, None)}
    asked.log.clear()
    trainer._turn("sleep")
    assert asked.log == [(ENGINE, "sleep")]


@pytest.mark.parametrize("gpus", [0, 3])
def test_where_nothing_is_shared_nobody_takes_turns(gpus: int, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer, asked = started(gpus, [], monkeypatch)
    trainer._turn("sleep")
    assert asked.log == [(LEARNER, "start"), (ENGINE, "start"), (TEACHER, "start")]
    assert set(asked.places.values()) == {(1.0, None)}


def test_what_a_teacher_beside_may_take_is_left_by_the_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    trainer, _ = started(1, [], monkeypatch)
    assert trainer.teacher is not None
    engine, teacher = trainer.rollouts.settings, trainer.teacher.fleets["teacher"].settings
    assert (engine.gpu_memory_utilization, teacher.gpu_memory_utilization) == (0.4, 0.2)
    assert engine.colocated
    assert teacher.colocated
    assert (engine.transport, teacher.transport) == ("ipc", "object_store")
