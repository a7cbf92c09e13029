"""The launcher's settings (accelerate, torchrun) in the recipe's terms, and what each launched process has to do."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from rlkd.errors import RecipeError
from rlkd.recipe import Recipe
from rlkd.recipe.checks import check_recipe

_PRECISION = {"no": "fp32", "bf16": "bf16"}


@dataclass(frozen=True)
class Launch:
    """One process of a launch. Without a launcher: one process that does everything."""

    processes: int | None = None
    precision: str | None = None
    zero_stage: int | None = None
    rank: int = 0
    local_rank: int = 0
    node: int = 0
    nodes: int = 1
    head: str | None = None
    port: int | None = None  # of the launcher's own key-value store on ``head``

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] | None = None) -> Launch:
        """Read what ``accelerate launch`` and ``torchrun`` export.

        Raises: RecipeError for a mixed precision that the learner does not have.
        """
        env = os.environ if environment is None else environment
        launched = "ACCELERATE_MIXED_PRECISION" in env or "RANK" in env
        if not launched:
            return cls()
        world, local = int(env.get("WORLD_SIZE", 1)), int(env.get("LOCAL_WORLD_SIZE", env.get("WORLD_SIZE", 1)))
        mixed = env.get("ACCELERATE_MIXED_PRECISION", "no")
        if mixed not in _PRECISION:
            raise RecipeError(f"--mixed_precision {mixed}: the learner has fp32 and bf16; write --mixed_precision bf16")
        deepspeed = env.get("ACCELERATE_USE_DEEPSPEED", "false").lower() == "true"
        rank = int(env.get("RANK", 0))
        asked = world
        if "RANK" not in env and "MASTER_ADDR" in env:
            asked = world = local = _asked_of_accelerate(_parent_command(), several=False)
        elif _is_accelerate(command := _parent_command()):
            asked = _asked_of_accelerate(command, several=True)
        return cls(
            processes=asked if asked > 1 else None,
            precision="bf16" if mixed == "bf16" else None,
            zero_stage=int(env["ACCELERATE_DEEPSPEED_ZERO_STAGE"]) if deepspeed else None,
            rank=rank,
            local_rank=int(env.get("LOCAL_RANK", 0)),
            node=int(env.get("GROUP_RANK", rank // max(1, local))),
            nodes=max(1, world // max(1, local)),
            head=env.get("MASTER_ADDR") if world > local else None,
            port=int(env["MASTER_PORT"]) if world > local and "MASTER_PORT" in env else None,
        )

    @property
    def role(self) -> Literal["driver", "join", "idle"]:
        """Global rank 0 drives; local rank 0 of every other machine joins Ray; the rest has nothing to do."""
        if self.rank == 0:
            return "driver"
        return "join" if self.local_rank == 0 else "idle"

    def resolve(self, recipe: Recipe) -> Recipe:
        """The recipe with the launcher's settings where it left them open.

        Raises: RecipeError when both say something and not the same.
        """
        cluster = _settle("--num_processes", self.processes, "cluster.learner_workers", recipe.cluster.learner_workers)
        chosen = recipe.learner.precision
        pinned = None if chosen == "auto" else chosen
        precision = _settle("--mixed_precision", self.precision, "learner.precision", pinned)
        stage = _settle("--zero_stage", self.zero_stage, "learner.zero_stage", recipe.learner.zero_stage)
        learner: dict[str, Any] = {"precision": precision or _precision_here(chosen), "zero_stage": stage or 0}
        resolved = recipe.model_copy(
            update={
                "cluster": recipe.cluster.model_copy(update={"learner_workers": cluster or 1}),
                "learner": recipe.learner.model_copy(update=learner),
            }
        )
        check_recipe(resolved, where=f"{recipe.name} with the launcher's settings")
        return resolved


def _settle(flag: str, launched: Any, key: str, pinned: Any) -> Any:
    if launched is not None and pinned is not None and launched != pinned:
        raise RecipeError(f"the launcher says {flag} {launched}, the recipe {key}: {pinned}; drop one of the two")
    return pinned if launched is None else launched


def _precision_here(chosen: str | None) -> str:
    """A CPU's bfloat16 is taken only by choice: what runs in float32 can be compared bit by bit."""
    import torch

    on_cpu = chosen == "auto" and cpu_bfloat16() == "native"
    return "bf16" if on_cpu or torch.cuda.is_available() else "fp32"


def cpu_bfloat16() -> Literal["native", "emulated", "none"]:
    """How this CPU multiplies bfloat16: by instructions, through AVX-512's float32, or value by value."""
    import torch

    found = torch.cpu.get_capabilities()
    if any(found.get(name) for name in ("avx512_bf16", "amx_bf16", "bf16")):  # the last is Arm's name for it
        return "native"
    return "emulated" if found.get("avx512_f") else "none"


def _parent_command() -> list[str]:
    """The command line that started this process: ``... accelerate launch --num_processes 2 recipe.yaml``."""
    import psutil

    try:
        return list(psutil.Process().parent().cmdline())  # type: ignore[union-attr]  # we do have a parent
    except psutil.Error:
        return []


def _is_accelerate(command: Sequence[str]) -> bool:
    return any("accelerate" in word for word in command[:3])


def end_with_launcher() -> None:
    """Be told when accelerate dies: it passes no signal on, and a job without its launcher would run on unseen."""
    if _is_accelerate(_parent_command()):
        end_with_parent()


def end_with_parent() -> None:
    """Be told to end when the process that started this one is gone, however it went (Linux)."""
    if sys.platform == "linux":
        import ctypes

        set_parent_death_signal = 1  # PR_SET_PDEATHSIG of prctl(2)
        ctypes.CDLL(None).prctl(set_parent_death_signal, signal.SIGTERM)


def _asked_of_accelerate(command: Sequence[str], *, several: bool) -> int:
    """Processes that the user asked accelerate for; 1 where nobody did.

    Unasked, accelerate starts one for each GPU, which is no wish for as many learners. And without several GPUs (and
    without DeepSpeed) it runs one plain process whatever ``--num_processes`` says, with a MASTER_ADDR but no rank and
    no world size. Its command line and its config file have the number.

    Raises: RecipeError when there are several machines, each of which would take itself for the first.
    """
    given: dict[str, Any] = {name: _option(command, name) for name in ("num_processes", "num_machines")}
    source = Path(_option(command, "config_file") or _default_config())
    if source.is_file():
        import yaml

        filed = yaml.safe_load(source.read_text(encoding="utf-8")) or {}
        given = {name: value or filed.get(name) for name, value in given.items()}
    if not several and int(given["num_machines"] or 1) > 1:
        raise RecipeError(
            f"--num_machines {given['num_machines']}: without several GPUs accelerate numbers no machine; add "
            "--use_deepspeed --deepspeed_multinode_launcher standard, or launch with torchrun --nnodes"
        )
    return int(given["num_processes"] or 1)


def _default_config() -> Path:
    """What ``accelerate config`` wrote, where accelerate looks for it."""
    cache = os.environ.get("XDG_CACHE_HOME", "~/.cache")
    home = os.environ.get("HF_HOME", f"{cache}/huggingface")
    return Path(home).expanduser() / "accelerate" / "default_config.yaml"


def outside(environment: Mapping[str, str]) -> dict[str, str]:
    """Variables without the launcher's own. Nothing that this process starts is one of the launcher's ranks.

    torch would look for a store that only the launcher's ranks know, and accelerate take its settings for the SFT
    worker's.
    """
    ours = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "OMP_NUM_THREADS")
    prefixes = ("ACCELERATE_", "TORCHELASTIC_", "GROUP_", "ROLE_", "FSDP_")
    return {name: value for name, value in environment.items() if name not in ours and not name.startswith(prefixes)}


def _option(command: Sequence[str], name: str) -> str | None:
    for index, word in enumerate(command):
        flag, equals, value = word.partition("=")
        if flag in (f"--{name}", f"--{name.replace('_', '-')}"):
            return value if equals else next(iter(command[index + 1 :]), None)
    return None
