"""Program answers: the reported and own cases, and what the sandbox keeps in."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from case_files import item, misjudged, own_cases

from reward.code import CodeVerifier, same_output, suite_of
from reward.pool import VerifierPool
from reward.sandbox import Limits, run

ADD = {"type": "call", "fn": "add", "tests": [[[1, 2], 3], [[5, 7], 12]]}
QUICK: dict[str, Any] = {"name": "code", "time_limit_s": 2.0, "total_s": 4.0}


def sandboxed() -> list[int]:
    """Processes of any sandbox on this machine: their uids are in a range of their own."""
    found = []
    for process in psutil.process_iter(["pid", "uids", "cmdline"]):
        uids, words = process.info["uids"], " ".join(process.info["cmdline"] or [])
        if (uids and 2_000_000 <= uids.real < 8_000_000) or "sandbox_launcher" in words:
            found.append(process.info["pid"])
    return found


def left_over(*, within_s: float = 10.0) -> list[int]:
    """Sandbox processes that are still there after a grace in which a busy machine can reap them."""
    deadline = time.monotonic() + within_s
    while (found := sandboxed()) and time.monotonic() < deadline:
        time.sleep(0.02)
    return found


def test_reported_cases(reported: list[dict[str, Any]]) -> None:
    cases = [case for case in reported if case["kind"] == "code_exec"]
    with VerifierPool(QUICK, workers=2) as pool:
        assert misjudged(cases, pool.verify_batch([item(case) for case in cases])) == []
    assert left_over() == []


def test_own_cases() -> None:
    cases = own_cases("code")
    with VerifierPool(QUICK, workers=2) as pool:
        assert misjudged(cases, pool.verify_batch([item(case) for case in cases])) == []
    assert left_over() == []
    assert {"accepted", "rejected", "cheating"} <= {case["note"] for case in cases}


@pytest.mark.parametrize(
    ("program", "sign"),
    [
        ("print(open('/etc/passwd').read())", b"root:"),
        ("import os; print(os.listdir(os.path.expanduser('~root')))", b"["),
        ("import os; print(dict(os.environ))", b"RLKD_SECRET"),
        ("import os; print(os.listdir('/proc'))", b"["),
        ("import os; print(os.listdir('/home'))", b"["),
        ("import os; os.chroot('/work'); print('out')", b"out"),
        ("import os; os.setuid(0); print('root')", b"root"),
        ("open('/usr/planted', 'w'); print('planted')", b"planted"),
    ],
)
def test_host_is_not_visible(program: str, sign: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RLKD_SECRET", "1")
    assert sign not in run(program).stdout
    assert not Path("/usr/planted").exists()


def test_no_network_not_even_to_this_machine() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        outcome = run(f"import socket; socket.create_connection(('127.0.0.1', {port}), 2); print('connected')")
    assert outcome.status == "exit"
    assert "unreachable" in outcome.detail


def test_files_written_are_gone() -> None:
    assert run("open('/tmp/rlkd-planted', 'w').write('x'); print('written')").stdout == b"written\n"
    assert not Path("/tmp/rlkd-planted").exists()
    assert run("import os; print(os.listdir('/tmp'))").stdout == b"[]\n"


def test_time_and_memory_are_bounded() -> None:
    started = time.monotonic()
    assert run("while True: pass", limits=Limits(time_limit_s=1.0)).status == "timeout"
    assert time.monotonic() - started < 5
    assert run("x = bytearray(10**9)").status == "memory"


@pytest.fixture
def _one_busy_core() -> Iterator[None]:
    """This process and its children share one core with another that never rests."""
    whole = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(whole)})
    other = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    yield
    other.kill()
    other.wait()
    os.sched_setaffinity(0, whole)


@pytest.mark.usefixtures("_one_busy_core")
def test_waiting_for_a_core_is_not_the_programs_time() -> None:
    work = "import time\nwhile time.process_time() < {}: pass\nprint(1)"
    started = time.monotonic()
    assert run(work.format(1.0), limits=Limits(time_limit_s=1.5)).status in ("ok", "starved")  # the latter: more load
    assert time.monotonic() - started > 1.5  # it did wait
    assert run("import time; time.sleep(60)", limits=Limits(time_limit_s=1.0)).status == "timeout"
    suite = {"type": "stdio", "tests": [["", "1"]] * 3}
    answer = f"```python\n{work.format(0.3)}\n```"
    verdict = CodeVerifier(time_limit_s=0.8, total_s=1.5).verify(answer, {"answer": suite})
    assert verdict.score in (1.0, None)


def test_memory_of_all_processes_together_is_bounded() -> None:
    hoard = "        x = bytearray(200 * 2**20)\n        time.sleep(60)\n"
    spread = f"import os, time\nfor _ in range(8):\n    if os.fork() == 0:\n{hoard}time.sleep(60)"
    assert run(spread, limits=Limits(time_limit_s=30.0, memory_limit_mb=256)).status == "memory"
    assert left_over() == []


def test_result_does_not_wait_for_a_child_left_behind() -> None:
    """The child holds the output pipe and sleeps; the program's end is the end."""
    program = (
        "import subprocess, sys\nsubprocess.Popen([sys.executable, '-c', 'import time; time.sleep(20)'])\nprint(3)"
    )
    started = time.monotonic()
    outcome = run(program, limits=Limits(time_limit_s=10.0))
    assert (outcome.status, outcome.stdout) == ("ok", b"3\n")
    assert time.monotonic() - started < 8
    assert left_over() == []


def test_sandbox_dies_with_the_worker_that_runs_it() -> None:
    """A worker killed in the middle of a program leaves neither launcher nor program."""
    with VerifierPool("code", workers=1, time_limit_s=1.0) as pool:
        hang = (
            "```python\nimport signal, time\nsignal.signal(15, signal.SIG_IGN)\ndef add(a, b):\n    time.sleep(60)\n```"
        )
        verdict = pool.verify_batch([(hang, {"answer": ADD})])[0]
        assert verdict.reason == "timeout"
    assert left_over() == []


def test_unprivileged_user_gets_the_same_sandbox() -> None:
    """Without root a user namespace does it."""
    if os.geteuid() != 0 or not Path("/usr/bin/python3").exists():
        pytest.skip("needs root to become somebody else, and a system Python")
    code = (
        "from reward.sandbox import run\n"
        "print(run('import os; print(os.getuid())').stdout, run('import os\\nwhile True: os.fork()').status,"
        " run('import socket; socket.create_connection((\"127.0.0.1\", 1), 1)').status)"
    )
    root = Path(__file__).parents[2]
    command = [
        "setpriv",
        "--reuid",
        "54321",
        "--regid",
        "54321",
        "--clear-groups",
        "/usr/bin/python3",
        "-B",
        "-c",
        code,
    ]
    done = subprocess.run(command, capture_output=True, text=True, cwd="/", env={"PYTHONPATH": str(root)})
    if "No module named" in done.stderr or "Permission denied" in done.stderr:
        pytest.skip("the system Python cannot read this checkout")
    assert done.stdout.strip() == "b'1000\\n' exit exit", done.stderr


def test_missing_sandbox_is_an_abstention(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("reward.sandbox.visible_paths", lambda: ["/dev/null"])  # no Python to run
    verdict = CodeVerifier().verify("```python\ndef add(a, b): return a + b\n```", {"answer": ADD})
    assert verdict.abstained
    assert verdict.reason == "error"


def test_partial_credit_counts_tests() -> None:
    half = "```python\ndef add(a, b):\n    return 3\n```"
    assert CodeVerifier(partial=True).verify(half, {"tests": ADD}).score == 0.5
    assert CodeVerifier().verify(half, {"tests": ADD}).score == 0.0


@pytest.mark.parametrize(
    "suite",
    [None, "", "no json", {}, {"type": "call"}, {"type": "call", "fn": "f", "tests": []},
     {"type": "stdio", "tests": [["a"]]},
     {"type": "call", "fn": "f; import os", "tests": [[[], 1]]}, {"type": "call", "fn": "f", "tests": [[1, 1]]}],
)  # fmt: skip
def test_unusable_tests_abstain(suite: Any) -> None:
    """No test run means no verdict, never a pass."""
    assert isinstance(suite_of({"answer": suite}), str)
    assert CodeVerifier().verify("```python\nx = 1\n```", {"answer": suite}).reason == "bad_gold"


def test_gold_check_runs_the_reference_solution() -> None:
    good = {"answer": json.dumps(ADD), "reference_solution": "def add(a, b):\n    return a + b"}
    assert CodeVerifier().check_gold(good).score == 1.0
    assert (
        CodeVerifier().check_gold({**good, "reference_solution": "def add(a, b):\n    return 0"}).reason == "bad_gold"
    )


@pytest.mark.parametrize(
    ("got", "expected", "same"),
    [("1 \n2\n", "1\n2", True), ("1\n2", "1 2", False), ("0.30000000000000004", "0.3", True), ("0.31", "0.3", False),
     ("", "0", False), ("1\n\n2", "1\n2", False), ("nan", "0.5", False), ("yes", "Yes", False)],
)  # fmt: skip
def test_output_comparison(got: str, expected: str, same: bool) -> None:
    assert same_output(got, expected) is same
