"""Ray: starting or joining a cluster, placing workers by resources, and errors that name the worker."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from types import TracebackType
from typing import Any

from rlkd.cluster.hardware import Hardware, usable_cpus
from rlkd.cluster.host import Host
from rlkd.errors import ClusterError, RlkdError
from rlkd.launch import outside

# Idle OpenMP threads must sleep: workers that take turns on the same cores are ten times slower if they spin.
_QUIET = {"OMP_WAIT_POLICY": "PASSIVE", "KMP_BLOCKTIME": "0", "TOKENIZERS_PARALLELISM": "false"}
_TAIL_LINES = 25


@dataclass
class Worker:
    """One actor with a name and a log of its own."""

    name: str
    actor: Any
    log_file: Path

    def submit(self, method: str, *args: Any, **kwargs: Any) -> Pending:
        """Queue a call; calls of one worker run in the order of submission."""
        return Pending(self, method, self.actor.call.remote(method, *args, **kwargs))

    def tail(self) -> str:
        """The end of its log."""
        try:
            lines = self.log_file.read_text(errors="replace").splitlines()
        except OSError:
            lines = []
        return "\n".join(f"    {line}" for line in lines[-_TAIL_LINES:]) or "    (the log is empty)"


@dataclass
class Pending:
    """A call on its way. ``ref`` may be passed to another worker: its result then never visits the driver."""

    worker: Worker
    what: str
    ref: Any

    def result(self, deadline_s: float) -> Any:
        """Wait. Raises: the worker's own RlkdError, or ClusterError naming the worker, the call and its log."""
        import ray

        try:
            return ray.get(self.ref, timeout=deadline_s)
        except ray.exceptions.GetTimeoutError:
            raise self.stuck(deadline_s) from None
        except ray.exceptions.RayTaskError as error:
            cause = error.cause
            if isinstance(cause, RlkdError):
                raise type(cause)(f"{self.worker.name}: {cause}") from error
            raise ClusterError(
                f"{self.worker.name} failed in `{self.what}`: {cause}\n"
                f"  its log {self.worker.log_file} ends with\n{self.worker.tail()}"
            ) from error
        except ray.exceptions.RayError as error:
            raise ClusterError(
                f"{self.worker.name} died in `{self.what}` ({type(error).__name__}); its log "
                f"{self.worker.log_file} ends with\n{self.worker.tail()}"
            ) from error

    def stuck(self, seconds: float) -> ClusterError:
        """What to raise when the call has shown no progress for so long."""
        return ClusterError(
            f"{self.worker.name} made no progress in `{self.what}` for {seconds:.0f} s; its log "
            f"{self.worker.log_file} ends with\n{self.worker.tail()}"
        )


def gather(pending: Sequence[Pending], deadline_s: float) -> list[Any]:
    """Results of calls that run at the same time, under one deadline; the first failure is raised."""
    import ray

    until = time.monotonic() + deadline_s
    waiting = {call.ref: call for call in pending}
    while waiting:
        ready, _ = ray.wait(list(waiting), timeout=max(0.0, until - time.monotonic()))
        if not ready:
            stuck = ", ".join(f"{call.worker.name} (`{call.what}`)" for call in waiting.values())
            first = next(iter(waiting.values())).worker
            raise ClusterError(
                f"no progress for {deadline_s:.0f} s in {stuck}; {first.log_file} ends with\n{first.tail()}"
            )
        for ref in ready:
            waiting.pop(ref).result(1.0)
    return [call.result(deadline_s) for call in pending]


def _free(log_file: Path) -> Path:
    """The next name for an older log: name.1.log, name.2.log, ..."""
    return next(path for n in count(1) if not (path := log_file.with_suffix(f".{n}.log")).exists())


@contextmanager
def _outside_the_launch() -> Iterator[None]:
    """Ray's processes take this one's environment, and give it to every worker: without the launcher's part of it."""
    kept = dict(os.environ)
    for name in kept.keys() - outside(kept).keys():
        del os.environ[name]
    try:
        yield
    finally:
        os.environ.update({name: value for name, value in kept.items() if name not in os.environ})


NODE_SETTINGS = {  # of every Ray node that rlkd starts; the environment's own come first
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_worker_niceness": "0",  # workers are the job; Ray would run them at nice 15
}


@dataclass
class Cluster:
    """A Ray cluster that this run started, or joined through RAY_ADDRESS or the launcher."""

    log_dir: Path
    start_deadline_s: float
    note: Callable[[str], None] = print  # tells of a worker that was replaced
    hardware: Hardware = field(init=False)
    workers: list[Worker] = field(default_factory=list)

    def __enter__(self) -> Cluster:
        import ray

        # "local" and not None: without an address Ray would join whatever cluster was last started on this machine.
        address = os.environ.get("RAY_ADDRESS", "local")
        own = {"num_cpus": usable_cpus(), "include_dashboard": False}
        options: dict[str, Any] = own if address == "local" else {}
        for name, value in NODE_SETTINGS.items():
            os.environ.setdefault(name, value)
        with _outside_the_launch():
            ray.init(address=address or "local", log_to_driver=False, logging_level="ERROR", **options)
        total = ray.cluster_resources()
        self.hardware = Hardware(int(total.get("CPU", 1)), int(total.get("GPU", 0)), len(ray.nodes()))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        import ray

        for worker in self.workers:
            ray.kill(worker.actor)
        ray.shutdown()

    def spawn(
        self, name: str, *, gpus: float = 0.0, bundle: tuple[Any, int] | None = None, env: dict[str, str] | None = None
    ) -> Worker:
        """Start an empty worker process; ``build`` it next.

        Args:
            gpus: GPUs it holds; ignored on a cluster without any.
            bundle: (placement group, index) it must live in.
            env: environment of the process, set before anything is imported.
        """
        import ray

        threads = max(1, self.hardware.cpus // self.hardware.nodes) if not self.hardware.on_gpu else 1
        device = "cuda" if self.hardware.on_gpu else "cpu"
        variables = {**_QUIET, "DS_ACCELERATOR": device, "OMP_NUM_THREADS": str(threads), **(env or {})}
        options: dict[str, Any] = {
            "num_cpus": 0.01,  # workers take turns; Ray only has to place them
            "num_gpus": gpus if self.hardware.on_gpu else 0,
            "runtime_env": {"env_vars": variables},
        }
        if bundle is not None:
            from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

            options["scheduling_strategy"] = PlacementGroupSchedulingStrategy(*bundle)
        log_file = self.log_dir / f"{name}.log"
        if log_file.exists():  # of a worker that died, or of the run before it was killed
            log_file.rename(_free(log_file))
        worker = Worker(name, ray.remote(Host).options(**options).remote(str(log_file)), log_file)
        self.workers.append(worker)
        return worker

    def pairs(self, count: int) -> list[tuple[Any, int]] | None:
        """Bundles of one GPU each for two workers that share it; None on a cluster without any.

        Ray would fill the first GPU with two engines. Raises: ClusterError when the GPUs are not free in time.
        """
        import ray
        from ray.util.placement_group import placement_group

        if not self.hardware.on_gpu:
            return None
        group = placement_group([{"GPU": 1, "CPU": 0.1}] * count, strategy="PACK")
        if not group.wait(self.start_deadline_s):
            raise ClusterError(
                f"{count} GPUs for pairs of learner and engine were not free within {self.start_deadline_s:.0f} s; the "
                f"cluster has {self.hardware.describe()}, of which {ray.available_resources().get('GPU', 0):g} are free"
            )
        return [(group, index) for index in range(count)]

    def build(self, worker: Worker, target: str, *args: Any, **kwargs: Any) -> Pending:
        """Construct ``module:Class`` inside a worker."""
        return Pending(worker, f"start {target.rpartition(':')[2]}", worker.actor.build.remote(target, *args, **kwargs))

    def address(self, worker: Worker) -> tuple[str, int]:
        """Where a process group may meet."""
        host, port = Pending(worker, "address", worker.actor.address.remote()).result(self.start_deadline_s)
        return str(host), int(port)

    def stop(self, worker: Worker) -> None:
        """End a worker's process and give its resources back."""
        import ray

        ray.kill(worker.actor)
        self.workers.remove(worker)
