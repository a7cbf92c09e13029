"""Two launchers on this machine as two machines: two Ray nodes, one cluster, and nothing left behind."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from rlkd.cluster.joining import join_and_wait, start_head
from rlkd.errors import ClusterError
from rlkd.launch import Launch

SCRIPT = Path(__file__).with_name("two_machines.py")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("", 0))
        return int(probe.getsockname()[1])


def launch_both(*arguments: str) -> list[tuple[int, str]]:
    """In a fresh shell's environment: ``ray.init`` in a test before this one leaves its authentication mode behind."""
    port, shell = free_port(), {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    machines = [
        subprocess.Popen(
            [
                *(sys.executable, "-m", "torch.distributed.run", "--nnodes", "2", "--nproc_per_node", "2"),
                *("--node_rank", str(rank), "--master_addr", "127.0.0.1", "--master_port", str(port), str(SCRIPT)),
                *arguments,
            ],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=shell,
        )
        for rank in (0, 1)
    ]
    return [(machine.returncode, output) for machine in machines for output, _ in [machine.communicate(timeout=500)]]


def ray_folders() -> set[str]:
    """Folders of Ray nodes that joining started and that still run."""
    found = set()
    for process in psutil.process_iter(["cmdline"]):
        found |= {word for word in process.info["cmdline"] or () if "rlkd-ray-" in word}
    return found


@pytest.mark.engine
def test_two_machines_become_one_cluster_and_part() -> None:
    before = ray_folders()
    (driver, said), (joiner, answered) = launch_both()
    assert (driver, joiner) == (0, 0), said + answered
    assert "nodes 2 at " in said
    assert "address afterwards None" in said
    assert answered.count("machine 1 left") == 1, "only local rank 0 joins"
    assert ray_folders() <= before, "no process is left behind"


@pytest.mark.engine
def test_a_driver_that_dies_takes_the_cluster_with_it() -> None:
    before = ray_folders()
    (driver, said), (joiner, answered) = launch_both("--die")
    assert driver != 0, said
    assert "nodes 2 at " in said
    assert answered.count("machine 1 left") == 1, answered
    assert joiner == 0
    deadline = time.monotonic() + 60.0
    while not ray_folders() <= before and time.monotonic() < deadline:
        time.sleep(0.5)
    assert ray_folders() <= before, "a head without a driver ends by itself"


def test_one_machine_starts_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    with start_head(Launch()) as address:
        assert address is None


def test_a_given_cluster_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    with start_head(Launch(nodes=2, head="127.0.0.1", port=1)) as address:
        assert address == "10.0.0.1:6379"


def test_without_a_driver_the_machine_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    """The store is there (this process keeps it), the driver never comes."""
    from torch.distributed import TCPStore

    monkeypatch.setenv("TORCHELASTIC_USE_AGENT_STORE", "True")
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    launch = Launch(rank=2, node=1, nodes=2, head="127.0.0.1", port=store.port)
    with pytest.raises(ClusterError, match=r"machine 1 of 2.*no Ray cluster within 1 s"):
        join_and_wait(launch, deadline_s=1.0)


def test_missing_master_port_is_named() -> None:
    with pytest.raises(ClusterError, match="MASTER_PORT"):
        join_and_wait(Launch(rank=2, node=1, nodes=2, head="127.0.0.1"))
