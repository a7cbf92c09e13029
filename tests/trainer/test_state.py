"""Seeds, checkpoints, metrics and the run folder: resumable, atomic, one writer."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from rollout_groups import group

from rlkd.checkpoint import Checkpoints, read_json, write_json
from rlkd.errors import CheckpointError
from rlkd.metrics import MetricsLog, merge
from rlkd.recipe import Recipe, load_recipe
from rlkd.trainer.folder import RunFolder, fingerprint, rows_fingerprint
from rlkd.trainer.sampling import derive_seed, prompts_of_step

ROOT = Path(__file__).parents[2]


def test_prompts_are_a_pure_function_of_the_step() -> None:
    prompts = [group(str(index), [1]).prompt for index in range(7)]
    stream = [p.example.id for step in range(7) for p in prompts_of_step(prompts, seed=1, step=step, per_step=3)]
    assert stream[3:6] == [p.example.id for p in prompts_of_step(prompts, seed=1, step=1, per_step=3)]
    for epoch in range(3):
        assert sorted(stream[7 * epoch : 7 * epoch + 7]) == sorted(p.example.id for p in prompts)
    assert stream[:7] != stream[7:14], "each epoch has an order of its own"


def test_seeds_differ_by_path_and_repeat() -> None:
    seeds = {derive_seed(run, step, index) for run in range(3) for step in range(20) for index in range(20)}
    assert len(seeds) == 1200
    assert derive_seed(0, "kdrl", 3, 4) == derive_seed(0, "kdrl", 3, 4)
    assert derive_seed(1, 23) != derive_seed(12, 3)


def test_a_killed_save_leaves_the_last_complete_checkpoint(tmp_path: Path) -> None:
    store = Checkpoints(tmp_path, keep=2)
    store.save(2, {"x": 1}, lambda folder: (folder / "weights").touch())

    def dies(folder: Path) -> None:
        (folder / "weights").touch()
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        store.save(4, {"x": 2}, dies)
    latest = store.latest()
    assert latest is not None
    assert (latest.step, latest.manifest["x"]) == (2, 1)
    assert not list(tmp_path.glob(".step-*"))


def test_only_the_newest_checkpoints_stay(tmp_path: Path) -> None:
    store = Checkpoints(tmp_path, keep=2)
    for step in (1, 2, 3, 10):
        store.save(step, {}, lambda _: None)
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["step-000003", "step-000010"]


def test_another_checkpoint_format_is_refused(tmp_path: Path) -> None:
    store = Checkpoints(tmp_path, keep=2)
    saved = store.save(1, {}, lambda _: None)
    write_json(saved.folder / "manifest.json", {**saved.manifest, "format": 99})
    with pytest.raises(CheckpointError, match="format 99"):
        store.latest()


def test_metrics_are_cut_back_to_the_checkpoint(tmp_path: Path) -> None:
    log = MetricsLog(tmp_path, name="t", position=0)
    log.write({"step": 1, "loss": 0.5})
    position = log.position()
    log.write({"step": 2, "loss": float("nan")})
    log.close()
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert lines[1] == {"step": 2, "loss": None}
    again = MetricsLog(tmp_path, name="t", position=position)
    again.write({"step": 2, "loss": 0.25})
    again.close()
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2]


def test_metrics_merge_by_count_not_by_rank() -> None:
    one = {"kl": (1.0, 1.0), "gap/max": (0.5, 1.0), "loss": (0.25, 0.0)}
    two = {"kl": (2.0, 5.0), "gap/max": (0.2, 1.0), "loss": (0.5, 0.0)}
    assert merge([one, two]) == {"kl": 0.5, "gap/max": 0.5, "loss": 0.75}


def test_trackers_receive_the_figures(tmp_path: Path) -> None:
    """A stage counts its steps from 1 again, which a tracker takes for a step back."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    log = MetricsLog(tmp_path, name="t", trackers=["tensorboard"], position=0)
    log.write({"step": 1, "reward": 0.5, "stage": "one"})
    log.close()
    log = MetricsLog(tmp_path, name="t", trackers=["tensorboard"], position=log.path.stat().st_size)
    log.write({"step": 1, "reward": 0.75, "stage": "two"})
    log.close()
    events = EventAccumulator(str(next((tmp_path / "tensorboard").rglob("events*")).parent))
    events.Reload()
    assert [(event.step, event.value) for event in events.Scalars("reward")] == [(1, 0.5), (2, 0.75)]


def test_a_folder_has_one_writer(tmp_path: Path, recipe: Recipe) -> None:
    code = (
        "import sys, pathlib; from rlkd.recipe import load_recipe; from rlkd.trainer.folder import RunFolder\n"
        "folder = RunFolder.open(pathlib.Path(sys.argv[1]), load_recipe(sys.argv[2]), resume=False)\n"
        "print('open', flush=True)\n"
        "sys.stdin.read()"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "run"), str(ROOT / "recipes" / "kdrl.yaml")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline().strip() == "open"
        with pytest.raises(CheckpointError, match="in use by another run"):
            RunFolder.open(tmp_path / "run", recipe, resume=False)
        other.kill()
    assert RunFolder.open(tmp_path / "run", recipe, resume=False).resuming, "a killed writer's lock is free"


def test_an_unfinished_run_continues_and_another_recipe_is_refused(tmp_path: Path, recipe: Recipe) -> None:
    first = RunFolder.open(tmp_path / "run", recipe, resume=False)
    assert not first.resuming
    first.lock.release()
    again = RunFolder.open(tmp_path / "run", recipe, resume=False)
    assert again.resuming
    again.lock.release()
    (tmp_path / "run" / "metrics.jsonl").write_text("{}\n")
    other = load_recipe(ROOT / "recipes" / "kdrl.yaml", ["optim.lr=1.0e-5", "log.rollouts_every=3"])
    with pytest.raises(CheckpointError, match=r"optim\.lr \(0\.0003|optim\.lr \(") as caught:
        RunFolder.open(tmp_path / "run", other, resume=False)
    assert "rollouts_every" not in str(caught.value), "how a run is shown may change"


def test_a_run_that_never_got_anywhere_makes_room_for_its_corrected_recipe(tmp_path: Path, recipe: Recipe) -> None:
    first = RunFolder.open(tmp_path / "run", recipe, resume=False)
    (first.path / "models" / "policy").mkdir(parents=True)
    first.lock.release()
    other = load_recipe(ROOT / "recipes" / "kdrl.yaml", ["optim.lr=1.0e-5"])
    corrected = RunFolder.open(tmp_path / "run", other, resume=False)
    assert not corrected.resuming
    assert not (corrected.path / "models").exists()
    assert read_json(corrected.path / "recipe.json")["optim"]["lr"] == 1e-5


@pytest.mark.parametrize("made", ["2-redi/sampled/000000-000256.jsonl", "0-sft/policy.tmp/step-100"])
def test_work_is_not_thrown_away_for_another_recipe(tmp_path: Path, recipe: Recipe, made: str) -> None:
    first = RunFolder.open(tmp_path / "run", recipe, resume=False)
    part = first.path / "stages" / made
    part.parent.mkdir(parents=True)
    part.touch()
    first.lock.release()
    other = load_recipe(ROOT / "recipes" / "kdrl.yaml", ["optim.lr=1.0e-5"])
    with pytest.raises(CheckpointError, match=r"another recipe; these keys differ: optim\.lr"):
        RunFolder.open(tmp_path / "run", other, resume=False)
    assert part.exists()


def test_a_setting_deep_inside_is_named_alone(tmp_path: Path, recipe: Recipe) -> None:
    first = RunFolder.open(tmp_path / "run", recipe, resume=False)
    (first.path / "metrics.jsonl").touch()
    first.lock.release()
    other = load_recipe(ROOT / "recipes" / "kdrl.yaml", ["stages.0.steps=70", "description=" + "long " * 100])
    with pytest.raises(CheckpointError) as error:
        RunFolder.open(tmp_path / "run", other, resume=False)
    assert f"these keys differ: stages.0.steps ({recipe.stages[0].steps} -> 70). Write" in str(error.value)


def test_finished_runs_and_strangers_are_not_overwritten(tmp_path: Path, recipe: Recipe) -> None:
    first = RunFolder.open(tmp_path / "run", recipe, resume=False)
    write_json(tmp_path / "run" / "summary.json", {"status": "finished"})
    first.lock.release()
    with pytest.raises(CheckpointError, match="finished run"):
        RunFolder.open(tmp_path / "run", recipe, resume=False)
    assert RunFolder.open(tmp_path / "run", recipe, resume=True).finished() == {"status": "finished"}
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").touch()
    with pytest.raises(CheckpointError, match=r"thesis\.tex"):
        RunFolder.open(tmp_path / "mine", recipe, resume=False)


def test_another_model_is_refused_on_resume(tmp_path: Path, recipe: Recipe) -> None:
    from rlkd.cluster import Hardware

    folder = RunFolder.open(tmp_path / "run", recipe, resume=False)
    hardware = Hardware(cpus=2, gpus=0)
    folder.write_manifest(recipe, hardware, {"policy": "aaaa"})
    folder.write_manifest(recipe, hardware, {"policy": "aaaa"})
    assert len(read_json(tmp_path / "run" / "manifest.json")["starts"]) == 2
    with pytest.raises(CheckpointError, match="another policy model"):
        folder.write_manifest(recipe, hardware, {"policy": "bbbb"})


def test_other_rows_are_refused_on_resume(tmp_path: Path, recipe: Recipe) -> None:
    """A file that was edited in between: rollouts in flight would be laid beside other prompts."""
    from rlkd.cluster import Hardware

    folder = RunFolder.open(tmp_path / "run", recipe, resume=False)
    rows = [group(name, [1]).prompt.example for name in "ab"]
    for again in (rows, list(rows)):
        folder.write_manifest(recipe, Hardware(cpus=2, gpus=0), {}, {"data.train": rows_fingerprint(again)})
    with pytest.raises(CheckpointError, match=r"another data\.train "):
        folder.write_manifest(recipe, Hardware(cpus=2, gpus=0), {}, {"data.train": rows_fingerprint(rows[::-1])})


def test_other_rows_of_a_stage_are_refused_on_resume(tmp_path: Path, recipe: Recipe) -> None:
    """A stage loads its own rows when it begins; every start in between writes the manifest again."""
    from rlkd.cluster import Hardware

    folder = RunFolder.open(tmp_path / "run", recipe, resume=False)
    rows = [group(name, [1]).prompt.example for name in "ab"]
    for again in (rows, list(rows)):
        folder.write_manifest(recipe, Hardware(cpus=2, gpus=0), {}, {"data.train": "t"})
        folder.check_rows("stages.sft.data", again)
    folder.write_manifest(recipe, Hardware(cpus=2, gpus=0), {}, {"data.train": "t"})
    with pytest.raises(CheckpointError, match=r"another stages\.sft\.data "):
        folder.check_rows("stages.sft.data", rows[:1])


def test_fingerprints_see_weights(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.safetensors").write_bytes(b"a" * 100)
    before = fingerprint(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"a" * 99 + b"b")
    assert fingerprint(tmp_path) != before
