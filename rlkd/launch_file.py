"""``rlkd validate RECIPE --launch FILE``: an accelerate config in words, and where it and the recipe disagree."""

from __future__ import annotations

import contextlib
import io
from pathlib import Path
from typing import Any

from rlkd.cluster.fit import gpus_in_words
from rlkd.errors import RecipeError
from rlkd.launch import Launch
from rlkd.recipe import Recipe

_PRECISION = {"fp32": "float32", "bf16": "bfloat16 with float32 master weights"}
_ZERO = {
    0: "no sharding: every rank holds weights, gradients and optimizer",
    1: "ZeRO-1: optimizer state is sharded over the ranks",
    2: "ZeRO-2: optimizer state and gradients are sharded over the ranks",
    3: "ZeRO-3: optimizer state, gradients and weights are sharded over the ranks",
}
# Things that accelerate would do inside a training script; here the recipe says them.
_RECIPE_SAYS = {
    "gradient_accumulation_steps": "learner.tokens_per_micro_batch and learner.updates_per_step",
    "gradient_clipping": "optim.max_grad_norm",
    "offload_optimizer_device": "learner.offload_optimizer",
    "offload_param_device": "nothing: weights stay on their device",
    "deepspeed_config_file": "the learner section",
}
_NO_PART = ("fsdp_config", "megatron_lm_config", "parallelism_config", "fp8_config", "mpirun_config", "tpu_use_cluster")


def explain_launch(recipe: Recipe, path: str | Path) -> str:
    """What a run of ``recipe`` under this launch file will be.

    Raises: RecipeError when accelerate cannot read the file, or recipe and file contradict each other.
    """
    config = load_launch_file(path)
    launch = launch_of(config, path)
    settled = launch.resolve(recipe)
    cluster, learner = settled.cluster, settled.learner
    ranks = cluster.learner_workers or 1
    lines = [
        f"{path} with {recipe.name}:",
        f"  learner: {ranks} rank(s), {_from(launch.processes, 'num_processes')}",
        f"  precision: {_PRECISION[learner.precision or 'fp32']}, {_from(launch.precision, 'mixed_precision')}",
        f"  {_ZERO[learner.zero_stage or 0]}, {_from(launch.zero_stage, 'zero_stage')}",
        f"  machines: {launch.nodes}; {_roles(launch)}",
        f"  devices: {_devices(settled, bool(config.use_cpu))}",
    ]
    lines += [f"  without effect: {key}; {said} decides" for key, said in _ignored(config)]
    return "\n".join(lines)


def load_launch_file(path: str | Path) -> Any:
    """Accelerate's own reading of the file. Raises: RecipeError naming the fault."""
    from accelerate.commands.config.config_args import load_config_from_file

    if not Path(path).is_file():
        raise RecipeError(f"--launch: there is no file {path}; launch/ holds examples")
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            config = load_config_from_file(str(path))
    except Exception as error:
        raise RecipeError(f"--launch {path}: accelerate cannot read it: {error}") from error
    if not hasattr(config, "num_machines") or not hasattr(config, "deepspeed_config"):
        raise RecipeError(f"--launch {path}: only compute_environment LOCAL_MACHINE can run rlkd")
    return config


def launch_of(config: Any, path: str | Path) -> Launch:
    """The driver's ``Launch`` under this config. Raises: RecipeError for settings that the learner does not have."""
    for key in _NO_PART:
        if getattr(config, key, None):
            raise RecipeError(
                f"--launch {path}: {key} has no meaning here; the learner is DeepSpeed, use deepspeed_config"
            )
    deepspeed = config.deepspeed_config or {}
    kind = getattr(config.distributed_type, "value", config.distributed_type)
    if kind not in ("NO", "MULTI_CPU", "MULTI_GPU", "DEEPSPEED"):
        raise RecipeError(f"--launch {path}: distributed_type {kind}; accepted: NO, MULTI_CPU, MULTI_GPU, DEEPSPEED")
    nodes, processes = int(config.num_machines or 1), int(config.num_processes)
    if processes < nodes or processes % nodes:
        raise RecipeError(
            f"--launch {path}: num_processes {processes} is the number of all machines together and must be a multiple "
            f"of num_machines {nodes}"
        )
    if nodes > 1 and kind == "DEEPSPEED" and deepspeed.get("deepspeed_multinode_launcher") != "standard":
        raise RecipeError(
            f"--launch {path}: several machines with DeepSpeed need deepspeed_config.deepspeed_multinode_launcher: "
            "standard; accelerate's default, pdsh, starts processes over ssh that know nothing of this job"
        )
    if nodes > 1 and kind == "NO":
        raise RecipeError(f"--launch {path}: distributed_type NO numbers no machine; write MULTI_GPU or DEEPSPEED")
    environment = {"ACCELERATE_MIXED_PRECISION": str(config.mixed_precision or "no"), "RANK": "0"}
    environment |= {"WORLD_SIZE": str(processes), "LOCAL_WORLD_SIZE": str(processes // nodes)}
    environment |= {"MASTER_ADDR": str(config.main_process_ip or "127.0.0.1")}
    environment |= {"MASTER_PORT": str(config.main_process_port or 29500)}
    if kind == "DEEPSPEED":
        environment |= {"ACCELERATE_USE_DEEPSPEED": "true"}
        environment |= {"ACCELERATE_DEEPSPEED_ZERO_STAGE": str(deepspeed.get("zero_stage", 2))}  # accelerate's default
    return Launch.from_environment(environment)


def _from(launched: Any, key: str) -> str:
    return f"from the launch file ({key})" if launched is not None else "from the recipe or its default"


def _roles(launch: Launch) -> str:
    if launch.nodes == 1:
        return "rank 0 drives, Ray is started here; ranks above 0 have nothing to do and exit"
    return (
        f"rank 0 of the first ({launch.head}) drives and opens the Ray cluster; the first rank of each other machine "
        "joins it and leaves with it; all other ranks exit. Pass --machine_rank and --main_process_ip on each"
    )


def _devices(recipe: Recipe, on_cpu: bool) -> str:
    if on_cpu:
        return "none; learner, engines and teacher take turns on the CPU cores"
    return gpus_in_words(recipe)


def _ignored(config: Any) -> list[tuple[str, str]]:
    given = {**(config.deepspeed_config or {})}
    return [(key, said) for key, said in _RECIPE_SAYS.items() if given.get(key) not in (None, "none", "auto", 1, 1.0)]
