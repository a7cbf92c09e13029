"""The self-teacher inside a real DeepSpeed learner: what follows the policy, and what a checkpoint keeps."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

pytestmark = pytest.mark.engine

LORA = {"lora": {"rank": 4}}
KINDS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "frozen": ({"kind": "self", "weights": "frozen"}, {}),
    "frozen, adapters off": ({"kind": "self", "weights": "frozen"}, LORA),
    "averaged": ({"kind": "self", "weights": "ema", "ema_decay": 0.5}, {}),
    "averaged, adapters merged": ({"kind": "self", "weights": "ema", "ema_decay": 0.5}, LORA),
    "live": ({"kind": "self", "weights": "live"}, {}),
    "frozen, bf16": ({"kind": "self", "weights": "frozen"}, {"precision": "bf16"}),
}


@pytest.fixture(scope="module")
def followed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What every kind said, one after the other in one process."""
    script, place = Path(__file__).with_name("learner_job.py"), tmp_path_factory.mktemp("kinds")
    command = [sys.executable, str(script), str(place), json.dumps(KINDS)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    lines = [line for line in done.stdout.splitlines() if line.startswith("RESULT ")]
    assert lines, done.stdout[-2000:] + done.stderr[-3000:]
    return dict(json.loads(lines[0].removeprefix("RESULT ")))


def _moved(first: list[list[float]], second: list[list[float]]) -> float:
    return max(abs(a - b) for x, y in zip(first, second, strict=True) for a, b in zip(x, y, strict=True))


@pytest.mark.parametrize("kind", KINDS)
def test_what_the_self_teacher_follows(kind: str, followed: dict[str, Any]) -> None:
    found = followed[kind]
    teacher, policy = found["teacher"], found["policy"]
    assert all(value == 0 for line in found["equal_divergence"] for value in line)  # same weights, same context
    assert found["loss"][0] > 0
    assert _moved(policy[0], policy[1]) > 1e-4  # the policy learns
    if kind.startswith("frozen"):
        assert teacher[0] == teacher[1] == teacher[2]
        assert found["loss"][1] < found["loss"][0]  # towards a teacher that stands still
    else:
        assert _moved(teacher[0], teacher[1]) > 1e-4
    # saved after two updates, trained once more, restored: the teacher is that of the second update again
    assert _moved(teacher[2], teacher[3]) == 0


def _ranks(place: Path, ranks: int, zero: int) -> dict[str, Any]:
    """Gradients of every case of ``ranks_job.py``; a rank that waits for another runs into the time limit."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    script = str(Path(__file__).with_name("ranks_job.py"))
    logs = [place / f"rank-{ranks}-{rank}.log" for rank in range(ranks)]
    started = []
    for rank, path in enumerate(logs):
        words = [sys.executable, script, str(place), *map(str, (rank, ranks, port, zero))]
        with path.open("w") as log:
            started.append(subprocess.Popen(words, stdout=log, stderr=log))
    try:
        codes = [process.wait(timeout=200) for process in started]
    finally:
        for process in started:
            process.kill()
    assert codes == [0] * ranks, "\n".join(path.read_text()[-2000:] for path in logs)
    return dict(torch.load(place / f"ranks-{ranks}.pt"))


def test_a_teacher_inside_a_sharded_policy_waits_for_no_rank(tmp_path: Path) -> None:
    """Two ZeRO-3 ranks with unequal shares of taught rows get the gradients of one rank without sharding."""
    one, two = _ranks(tmp_path, 1, 0), _ranks(tmp_path, 2, 3)
    for case, found in two.items():
        assert found["taught"][0] != found["taught"][1], f"{case}: the ranks' shares are equal"
        wanted = one[case]["gradients"]
        assert found["gradients"].keys() == wanted.keys()
        size = max(float(tensor.abs().max()) for tensor in wanted.values())
        gap = max(float((found["gradients"][name] - tensor).abs().max()) for name, tensor in wanted.items())
        assert size > 1e-3, case
        assert gap < 1e-4 * size, f"{case}: {gap} of {size}"
