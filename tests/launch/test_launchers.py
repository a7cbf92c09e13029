"""Every way to start a recipe is the same job, with the real launchers."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from rlkd.launch import Launch, outside
from rlkd.recipe import load_recipe

ROOT = Path(__file__).parents[2]
RECIPE = "recipes/kdrl.yaml"
BIN = Path(sys.executable).parent
WAYS = {
    "accelerate": ["accelerate", "launch", RECIPE],
    "accelerate_module": ["accelerate", "launch", "-m", "rlkd", RECIPE],
    "accelerate_config": ["accelerate", "launch", "--config_file", "launch/cpu.yaml", RECIPE],
    "file": [f"./{RECIPE}"],
    "python": ["python", RECIPE],
    "module": ["python", "-m", "rlkd", RECIPE],
    "command": ["rlkd", "train", RECIPE],
}


def environment() -> dict[str, str]:
    """A user's: this environment's programs first on PATH, no launcher's variables around."""
    foreign = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "GROUP_RANK")
    kept = {k: v for k, v in os.environ.items() if k not in foreign and not k.startswith("ACCELERATE_")}
    return {**kept, "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}", "CUDA_VISIBLE_DEVICES": ""}


def start(*command: str, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    """Run as a user would."""
    return subprocess.run(command, cwd=cwd, env=environment(), capture_output=True, text=True, check=False, timeout=500)


@pytest.fixture(scope="module")
def described() -> str:
    """The job as the library resolves it."""
    done = start(
        "python", "-c", "from rlkd.arithmetic import describe; from rlkd.launch import Launch; import rlkd;"
        f"print(describe(Launch().resolve(rlkd.load_recipe('{RECIPE}', ['optim.lr=2e-6']))))",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "lr 2e-06" in done.stdout
    return done.stdout


@pytest.mark.parametrize("way", WAYS)
def test_every_way_to_start_is_the_same_job(way: str, described: str) -> None:
    done = start(*WAYS[way], "optim.lr=2e-6", "--dry-run")
    assert done.returncode == 0, done.stderr
    assert done.stdout == described


def test_torchrun_starts_one_driver(described: str) -> None:
    done = start("torchrun", "--nproc_per_node", "2", RECIPE, "optim.lr=2e-6", "--dry-run")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("one RL step") == 1, "two ranks, one driver"
    assert "2 learner rank(s): fp32, ZeRO stage 0" in done.stdout
    assert "1 learner rank(s)" in described


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (("--cpu", "--num_processes", "2"), "2 learner rank(s): fp32, ZeRO stage 0"),
        (("--cpu", "--mixed_precision", "bf16"), "1 learner rank(s): bf16, ZeRO stage 0"),
        (
            ("--use_deepspeed", "--zero_stage", "2", "--num_processes", "2", "--mixed_precision", "bf16"),
            "2 learner rank(s): bf16, ZeRO stage 2",
        ),
    ],
)
def test_accelerates_flags_become_the_learner(flags: tuple[str, ...], expected: str) -> None:
    done = start("accelerate", "launch", *flags, RECIPE, "--dry-run")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count(expected) == 1


EIGHT = {
    "ACCELERATE_MIXED_PRECISION": "no",
    "RANK": "0",
    "WORLD_SIZE": "8",
    "LOCAL_WORLD_SIZE": "8",
    "MASTER_ADDR": "127.0.0.1",
    "MASTER_PORT": "29500",
}


@pytest.mark.parametrize(
    ("command", "filed", "learners"),
    [
        (["python", "/bin/accelerate", "launch", RECIPE], "", 1),
        (["python", "/bin/accelerate", "launch", "--num_processes", "8", RECIPE], "", 8),
        (["python", "/bin/accelerate", "launch", "--num-processes=8", RECIPE], "", 8),
        (["python", "/bin/accelerate", "launch", "--config_file", str(ROOT / "launch/gpu8-zero3.yaml"), RECIPE], "", 4),
        (["python", "/bin/accelerate", "launch", RECIPE], "num_processes: 8\n", 8),  # `accelerate config` asked
        (["python", "/bin/torchrun", "--nproc_per_node", "8", RECIPE], "", 8),
    ],
)
def test_a_process_for_each_gpu_is_no_wish_for_as_many_learners(
    command: list[str], filed: str, learners: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Unasked, accelerate starts one a GPU; engines and teachers need some of these."""
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    (tmp_path / "accelerate").mkdir()
    if filed:
        (tmp_path / "accelerate" / "default_config.yaml").write_text(filed)
    monkeypatch.setattr("rlkd.launch._parent_command", lambda: command)
    assert Launch.from_environment(EIGHT).resolve(load_recipe(ROOT / RECIPE)).cluster.learner_workers == learners


def test_what_is_started_is_outside_the_launch() -> None:
    more = {"TORCHELASTIC_USE_AGENT_STORE": "True", "ACCELERATE_USE_DEEPSPEED": "true", "OMP_NUM_THREADS": "1"}
    assert outside({**EIGHT, **more, "PATH": "/bin", "RAY_ADDRESS": "h:1"}) == {"PATH": "/bin", "RAY_ADDRESS": "h:1"}


def test_launcher_against_recipe_names_both() -> None:
    done = start(
        "accelerate", "launch", "--cpu", "--mixed_precision", "bf16", RECIPE, "learner.precision=fp32", "--dry-run"
    )
    assert done.returncode != 0
    assert "--mixed_precision bf16" in done.stderr
    assert "learner.precision: fp32" in done.stderr
    assert "one RL step" not in done.stdout


def test_machines_that_accelerate_would_not_number_are_refused() -> None:
    """Without several GPUs each machine would take itself for the first and train alone."""
    flags = (
        "--num_machines",
        "2",
        "--machine_rank",
        "1",
        "--main_process_ip",
        "127.0.0.1",
        "--main_process_port",
        "29511",
    )
    done = start("accelerate", "launch", "--cpu", "--num_processes", "2", *flags, RECIPE, "--dry-run")
    assert done.returncode != 0
    assert "--num_machines 2" in done.stderr
    assert "torchrun --nnodes" in done.stderr


@pytest.mark.parametrize("way", ["python", "command"])
def test_unknown_key_is_exit_2_and_names_the_nearest(way: str) -> None:
    done = start(*WAYS[way], "optim.learning_rte=1e-6", "--dry-run")
    assert done.returncode == 2
    assert "optim.learning_rte" in done.stderr
    assert "unknown key" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_missing_recipe_is_exit_2(tmp_path: Path) -> None:
    done = start("rlkd", "train", str(tmp_path / "no.yaml"), "--dry-run")
    assert done.returncode == 2
    assert "no.yaml" in done.stderr
    assert "Traceback" not in done.stderr


def test_dry_run_writes_nothing(tmp_path: Path) -> None:
    done = start("rlkd", "train", str(ROOT / RECIPE), "--dry-run", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.engine
def test_a_job_of_two_launched_processes_trains(tmp_path: Path) -> None:
    """What the launcher tells its ranks reaches no worker: torch would wait for a store that only those ranks have."""
    small = [
        *("stages.sft.steps=2", "stages.sft.batch_size=8", "stages.grpo.steps=1", "optim.warmup_steps=0"),
        *("data.train.size=64", "data.eval.size=8", "rollout.prompts_per_step=4", "rollout.group_size=4"),
        *("rollout.max_new_tokens=8", "stages.sft.optim={lr: 1.0e-3}"),
    ]
    launcher = ("accelerate", "launch", "--use_deepspeed", "--zero_stage", "2", "--num_processes", "2")
    done = start(*launcher, "recipes/grpo.yaml", *small, "--out", str(tmp_path / "run"))
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    recipe, summary = (json.loads((tmp_path / "run" / name).read_text()) for name in ("recipe.json", "summary.json"))
    assert (recipe["cluster"]["learner_workers"], recipe["learner"]["zero_stage"]) == (2, 2)
    assert (summary["status"], summary["steps"]) == ("finished", 1)


@pytest.mark.engine
def test_a_job_ends_with_its_launcher(tmp_path: Path) -> None:
    out = tmp_path / "run"
    command = ["accelerate", "launch", RECIPE, "data.train.size=64", "data.eval.size=16", "--out", str(out)]
    launcher = subprocess.Popen(command, cwd=ROOT, env=environment(), stdout=subprocess.DEVNULL)
    assert soon(lambda: (out / "logs" / "SftWorker-sft-0.log").exists()), "the job never started"
    family = psutil.Process(launcher.pid).children(recursive=True)
    assert any("raylet" in process.name() for process in family)
    launcher.kill()
    launcher.wait(timeout=30)
    assert soon(lambda: not any(process.is_running() for process in family)), [p.cmdline() for p in family]


def soon(condition: Callable[[], bool], within_s: float = 120.0) -> bool:
    """Whether it becomes true in time."""
    until = time.monotonic() + within_s
    while not condition() and time.monotonic() < until:
        time.sleep(0.2)
    return condition()
