"""Several machines: the driver opens a Ray cluster, local rank 0 of every other machine lends its machine to it.

They meet in the key-value store that torchrun keeps at MASTER_ADDR:MASTER_PORT anyway, so that Ray's own port is asked
of the operating system and two jobs on one machine never collide.
"""

from __future__ import annotations

import ipaddress
import os
import secrets
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from pathlib import Path
from typing import Any

from rlkd.cluster.hardware import usable_cpus
from rlkd.cluster.ray_cluster import NODE_SETTINGS
from rlkd.errors import ClusterError
from rlkd.launch import Launch, end_with_parent, outside

START_DEADLINE_S = 600.0  # machines of one job may start minutes apart
_ADDRESS, _DONE = "rlkd/ray_address", "rlkd/done"
_OURS = ("RAY_ADDRESS", "RAY_AUTH_MODE", "RAY_AUTH_TOKEN")
_POLL_S = 1.0
_END_S = 8.0  # Ray drains a node before it lets go; nobody needs that here


@contextmanager
def start_head(launch: Launch, *, deadline_s: float = START_DEADLINE_S) -> Iterator[str | None]:
    """Open a cluster of all machines for the duration of the block; RAY_ADDRESS names it meanwhile.

    With one machine, or where RAY_ADDRESS names a cluster already, it does nothing.

    Raises: ClusterError when a machine is missing at the deadline.
    """
    if launch.nodes < 2 or "RAY_ADDRESS" in os.environ:
        yield os.environ.get("RAY_ADDRESS")
        return
    store = _store(launch, deadline_s)
    host = _reachable(socket.gethostbyname(str(launch.head)))
    address = f"{host}:{_free_port()}"
    token = secrets.token_hex(32)  # Ray lets in who has it; without one every machine would invent its own
    _authenticate(token)
    process, log = _ray_start(
        "--head", "--include-dashboard=false", f"--node-ip-address={host}", f"--port={address.rpartition(':')[2]}"
    )
    try:
        _await_nodes(address, 1, process, log, deadline_s)
        store.set(_ADDRESS, f"{address} {token}")
        _await_nodes(address, launch.nodes, process, log, deadline_s)
        os.environ["RAY_ADDRESS"] = address
        yield address
    finally:
        for name in _OURS:
            os.environ.pop(name, None)
        store.set(_DONE, "1")
        _end(process)


def join_and_wait(launch: Launch, *, deadline_s: float = START_DEADLINE_S) -> None:
    """Lend this machine to the driver's cluster until the driver is done or gone.

    Raises: ClusterError when there is no driver at the deadline, or Ray does not start or ends early here.
    """
    store = _store(launch, deadline_s)
    try:
        address, token = store.get(_ADDRESS).decode().split()
    except Exception as error:  # torch raises one of several types for a store that timed out or went away
        raise ClusterError(
            f"machine {launch.node} of {launch.nodes}: the driver at {launch.head}:{launch.port} opened no Ray cluster "
            f"within {deadline_s:.0f} s ({type(error).__name__}); see the log of machine 0"
        ) from error
    _authenticate(token)
    process, log = _ray_start(f"--address={address}")
    try:
        while not _done(store):
            if process.poll() is not None:
                time.sleep(_POLL_S)
                if _done(store):
                    return
                left = f"machine {launch.node}: Ray left the cluster at {address} (exit {process.returncode})"
                raise ClusterError(f"{left}; {_tail(log)}")
            time.sleep(_POLL_S)
    finally:
        _end(process)


def _authenticate(token: str) -> None:
    """For this process and its children. Ray read its settings when it was imported, and must be told to look again."""
    from ray._raylet import AuthenticationTokenLoader, Config  # type: ignore[attr-defined]  # compiled, no stubs

    os.environ.update(RAY_AUTH_MODE="token", RAY_AUTH_TOKEN=token)
    Config.initialize("")
    AuthenticationTokenLoader.instance().reset_cache()


def _store(launch: Launch, deadline_s: float) -> Any:
    """The launcher's store; where no launcher keeps one (ranks exported by hand), the driver does."""
    from torch.distributed import TCPStore

    if launch.head is None or launch.port is None:
        raise ClusterError(
            "several machines, but MASTER_ADDR or MASTER_PORT is not set; launch with accelerate or torchrun"
        )
    kept = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    return TCPStore(
        launch.head,
        launch.port,
        is_master=not kept and launch.rank == 0,
        timeout=timedelta(seconds=deadline_s),
        wait_for_workers=False,
    )


def _done(store: Any) -> bool:
    """Whether the driver said so, or took the store with it."""
    try:
        return bool(store.check([_DONE]))
    except Exception:
        return True


def _reachable(host: str) -> str:
    """An address that other machines can use: many systems map their own name to a loopback address."""
    from ray.util import get_node_ip_address

    return str(get_node_ip_address()) if ipaddress.ip_address(host).is_loopback else host


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("", 0))
        return int(probe.getsockname()[1])


def _ray_start(*arguments: str) -> tuple[subprocess.Popen[bytes], Path]:
    """A Ray node as a child process, so that it ends with us; never ``ray stop``, which ends other jobs' nodes too."""
    folder = Path(tempfile.mkdtemp(prefix="rlkd-ray-"))
    log = folder / "ray-start.log"
    command = [
        *(sys.executable, "-m", "ray.scripts.scripts", "start", "--block", "--disable-usage-stats"),
        *(f"--num-cpus={usable_cpus()}", *arguments),
    ]
    # A folder of its own: Ray notes "the current cluster" in its folder, and other programs here would connect to ours.
    environment = {**NODE_SETTINGS, **outside(os.environ), "RAY_TMPDIR": str(folder)}
    with log.open("wb") as stream:
        process = subprocess.Popen(
            command, stdout=stream, stderr=stream, env=environment, start_new_session=True, preexec_fn=end_with_parent
        )
    return process, log


def _await_nodes(address: str, count: int, process: subprocess.Popen[bytes], log: Path, deadline_s: float) -> None:
    import ray

    until = time.monotonic() + deadline_s
    found = 0
    while time.monotonic() < until:
        if process.poll() is not None:
            raise ClusterError(f"Ray did not start on this machine (exit {process.returncode}); {_tail(log)}")
        if not _listening(address):
            time.sleep(_POLL_S)
            continue
        try:
            ray.init(address=address, log_to_driver=False, logging_level="CRITICAL")
        except (ConnectionError, RuntimeError, ValueError):  # not up yet
            time.sleep(_POLL_S)
            continue
        try:
            while found < count and time.monotonic() < until:
                found = sum(bool(node["Alive"]) for node in ray.nodes())
                time.sleep(0 if found >= count else _POLL_S)
        finally:
            ray.shutdown()
        if found >= count:
            return
    raise ClusterError(
        f"{found} of {count} machines joined Ray at {address} within {deadline_s:.0f} s; is the port reachable from "
        "the others, and was the same command started on each with its own --machine_rank?"
    )


def _listening(address: str) -> bool:
    """Asked first, because a Ray client that finds nobody keeps trying for half a minute and logs every attempt."""
    host, _, port = address.rpartition(":")
    with socket.socket() as probe:
        probe.settimeout(_POLL_S)
        return probe.connect_ex((host, int(port))) == 0


def _end(process: subprocess.Popen[bytes]) -> None:
    """End the node and everything it started, and nothing else."""
    import psutil

    try:
        family = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
    except psutil.NoSuchProcess:
        return
    process.terminate()
    _, alive = psutil.wait_procs(family, timeout=_END_S)
    for member in alive:
        with suppress(psutil.NoSuchProcess):
            member.kill()
    process.wait()


def _tail(log: Path) -> str:
    lines = log.read_text(errors="replace").splitlines()[-15:]
    return f"its log {log} ends with\n" + "\n".join(f"    {line}" for line in lines)
