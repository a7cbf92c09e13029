"""launch/: every accelerate config is read by accelerate itself and explained; contradictions are errors."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
import yaml

from rlkd.errors import RecipeError
from rlkd.launch_file import explain_launch, launch_of, load_launch_file
from rlkd.recipe import Recipe, load_recipe

ROOT = Path(__file__).parents[2]
CONFIGS = sorted(path for path in (ROOT / "launch").glob("*.yaml") if path.name != "kuberay.yaml")


@pytest.fixture(scope="module")
def recipe() -> Recipe:
    return load_recipe(ROOT / "recipes" / "kdrl.yaml")


def written(folder: Path, **settings: object) -> Path:
    base = {"compute_environment": "LOCAL_MACHINE", "distributed_type": "DEEPSPEED", "num_processes": 2}
    path = folder / "launch.yaml"
    path.write_text(yaml.safe_dump({**base, "num_machines": 1, "mixed_precision": "no", **settings}), encoding="utf-8")
    return path


def test_all_five_settings_are_here() -> None:
    assert [path.stem for path in CONFIGS] == ["cpu", "gpu1", "gpu8-zero2", "gpu8-zero3", "nodes2-zero3"]


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_each_launch_file_is_explained(path: Path, recipe: Recipe) -> None:
    filed = yaml.safe_load(path.read_text(encoding="utf-8"))
    text = explain_launch(recipe, path)
    assert f"learner: {filed['num_processes']} rank(s)" in text
    assert f"machines: {filed['num_machines']};" in text
    assert ("bfloat16" in text) == (filed["mixed_precision"] == "bf16")
    stage = (filed.get("deepspeed_config") or {}).get("zero_stage")
    assert (f"ZeRO-{stage}" if stage else "no sharding") in text
    assert "without effect" not in text, "a shipped file says nothing that rlkd ignores"


def test_two_machines_say_who_joins(recipe: Recipe) -> None:
    text = explain_launch(recipe, ROOT / "launch" / "nodes2-zero3.yaml")
    assert "first rank of each other machine joins" in text


def test_a_launch_file_against_the_recipe_names_both() -> None:
    pinned = load_recipe(ROOT / "recipes" / "kdrl.yaml", ["learner.zero_stage=3"])
    with pytest.raises(RecipeError, match=r"--zero_stage 2.*learner\.zero_stage: 3"):
        explain_launch(pinned, ROOT / "launch" / "gpu8-zero2.yaml")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"mixed_precision": "fp16"}, "--mixed_precision fp16.*bf16"),
        ({"distributed_type": "FSDP", "fsdp_config": {"fsdp_version": 2}}, "fsdp_config"),
        ({"num_machines": 2}, "deepspeed_multinode_launcher"),
        ({"num_machines": 2, "num_processes": 3}, "multiple of num_machines"),
        ({"num_machines": 2, "distributed_type": "NO"}, "numbers no machine"),
        ({"num_proceses": 2}, "num_proceses"),
    ],
)
def test_launch_files_that_cannot_run(
    settings: dict[str, object], message: str, tmp_path: Path, recipe: Recipe
) -> None:
    with pytest.raises(RecipeError, match=message):
        explain_launch(recipe, written(tmp_path, **settings))


def test_what_the_recipe_decides_is_said(tmp_path: Path, recipe: Recipe) -> None:
    path = written(
        tmp_path, deepspeed_config={"zero_stage": 2, "gradient_accumulation_steps": 8, "gradient_clipping": 0.5}
    )
    text = explain_launch(recipe, path)
    assert "without effect: gradient_accumulation_steps" in text
    assert "without effect: gradient_clipping; optim.max_grad_norm decides" in text


def test_zero_stage_default_is_accelerates(tmp_path: Path) -> None:
    path = written(tmp_path, deepspeed_config={"gradient_clipping": 1.0})
    assert launch_of(load_launch_file(path), path).zero_stage == 2


@pytest.mark.parametrize("script", ["install.sh", "slurm.sh"])
def test_scripts_parse(script: str) -> None:
    done = subprocess.run(["bash", "-n", str(ROOT / "launch" / script)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_slurm_hands_every_machine_its_own_rank(tmp_path: Path) -> None:
    """With stand-ins for srun and scontrol: what would be launched on machine 1 of 2."""
    (tmp_path / "bin").mkdir()
    (tmp_path / "venv" / "bin").mkdir(parents=True)
    (tmp_path / "venv" / "bin" / "activate").write_text("", encoding="utf-8")
    stand_ins = {
        "srun": 'shift; SLURM_NODEID=1 exec "$@"',
        "scontrol": "printf 'node-a\\nnode-b\\n'",
        "accelerate": 'printf "%s\\n" "$@"',
    }
    for name, body in stand_ins.items():
        path = tmp_path / "bin" / name
        path.write_text(f"#!/usr/bin/env bash\n{body}\n", encoding="utf-8")
        path.chmod(0o755)
    environment = {
        "PATH": f"{tmp_path / 'bin'}:/usr/bin:/bin",
        "VENV": str(tmp_path / "venv"),
        "SLURM_JOB_NUM_NODES": "2",
        "SLURM_JOB_NODELIST": "node-[a-b]",
        "SLURM_JOB_ID": "7",
    }
    done = subprocess.run(
        ["bash", str(ROOT / "launch" / "slurm.sh"), "my.yaml", "optim.lr=2e-6"],
        env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    words = done.stdout.split()
    given = dict(zip(words[1::2], words[2::2], strict=False))
    assert given["--machine_rank"] == "1"
    assert given["--num_machines"] == "2"
    assert given["--num_processes"] == "8"
    assert given["--main_process_ip"] == "node-a"
    assert words[-2:] == ["my.yaml", "optim.lr=2e-6"]
