"""The pool's promises: order, limits, replacement, nothing left behind, faults that are abstentions."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from reward.pool import VerifierPool, _Job
from reward.verdict import Verdict
from rlkd.errors import VerifierError

SPEC = "verifiers_for_tests:by_command"


@pytest.fixture
def pool() -> Iterator[VerifierPool]:
    with VerifierPool(SPEC, workers=2, time_limit_s=1.0, memory_limit_mb=512) as pool:
        yield pool


def workers() -> list[psutil.Process]:
    return [
        child for child in psutil.Process().children(recursive=True) if "reward.worker" in " ".join(child.cmdline())
    ]


def test_order_is_kept_whatever_each_takes(pool: VerifierPool) -> None:
    texts = [f"sleep 0.0{at % 3}" if at % 5 == 0 else f"text {at}" for at in range(60)]
    items = [(text, {"answer": text if at % 2 else "other"}) for at, text in enumerate(texts)]
    assert [verdict.score for verdict in pool.verify_batch(items)] == [float(at % 2) for at in range(60)]


def test_spinning_answer_scores_zero_as_timeout_and_the_rest_of_its_chunk_is_judged(pool: VerifierPool) -> None:
    items = [("spin 30", {"answer": "x"}) if at == 7 else (f"{at}", {}) for at in range(20)]
    started = time.monotonic()
    verdicts = pool.verify_batch(items)
    assert time.monotonic() - started < 15
    assert (verdicts[7].score, verdicts[7].reason) in ((0.0, "timeout"), (None, "timeout"))  # None on a starved machine
    assert all(verdict.score == 1.0 for at, verdict in enumerate(verdicts) if at != 7)
    assert pool.stats.replaced == 1


def test_operation_that_holds_the_interpreter_is_killed(pool: VerifierPool) -> None:
    started = time.monotonic()
    verdict = pool.verify_batch([("bigint", {})])[0]
    assert verdict.reason in ("timeout", "memory")
    assert not verdict.score
    assert time.monotonic() - started < 10


def test_starved_worker_is_an_abstention_not_a_zero(pool: VerifierPool) -> None:
    """Sleeping burns no CPU: the answer did not cause it."""
    verdict = pool.verify_batch([("sleep 30", {})])[0]
    assert (verdict.abstained, verdict.score, verdict.reason) == (True, None, "timeout")
    assert pool.stats.abstained == 1


def test_memory_limit() -> None:
    with VerifierPool(SPEC, workers=1, time_limit_s=30.0, memory_limit_mb=512) as patient:
        over, under = patient.verify_batch([("alloc 2000", {}), ("alloc 100", {})])
    assert (over.score, over.reason) == (0.0, "memory")
    assert under.score == 1.0


def test_verifier_faults_are_abstentions_that_say_why(pool: VerifierPool) -> None:
    raised, died, nothing = pool.verify_batch([("raise oops", {}), ("die", {}), ("return none", {})])
    assert raised.abstained
    assert "ValueError: oops" in raised.detail
    assert died.abstained
    assert "exit status 3" in died.detail
    assert nothing.abstained
    assert pool.stats.reasons["error"] == 3
    assert pool.stats.snapshot()["abstained"] == 3.0


@pytest.mark.parametrize("value", ["nan", "1.5", "text"])
def test_numbers_outside_the_unit_interval_are_no_scores(pool: VerifierPool, value: str) -> None:
    assert pool.verify_batch([(f"return {value}", {})])[0].abstained


def test_partial_and_boolean_scores(pool: VerifierPool) -> None:
    partial, boolean = pool.verify_batch([("return 0.25", {}), ("return true", {})])
    assert (partial.score, partial.reason) == (0.25, "partial")
    assert (boolean.score, boolean.reason) == (1.0, "right")


def test_scalar_of_an_array_library_is_a_score(pool: VerifierPool) -> None:
    assert pool.verify_batch([("return array", {})])[0].score == 0.5


@pytest.mark.parametrize("command", ["leave exit", "leave interrupt", "input", "unspeakable"])
def test_what_a_verifier_does_to_its_process_costs_no_worker(pool: VerifierPool, command: str) -> None:
    strange, plain = pool.verify_batch([(command, {}), ("a", {})])
    assert (strange.abstained, strange.reason) == (True, "error")
    assert plain.score == 1.0
    assert pool.stats.replaced == 0


FORGED = json.dumps({"verdict": Verdict.right().to_json(), "spoiled": False, "token": 0})


@pytest.mark.parametrize("command", ["write hello", f"write {FORGED}", "close"])
def test_foreign_frames_shift_no_verdict(command: str) -> None:
    """A verifier that writes into the worker's pipe, or closes it, is an abstention; its neighbours get their own."""
    with VerifierPool(SPEC, workers=1, time_limit_s=5.0) as single:
        items = [("a", {"answer": "a"}), (command, {}), ("b", {"answer": "c"}), ("d", {"answer": "d"})]
        verdicts = single.verify_batch(items)
    assert [verdict.score for verdict in verdicts] == [1.0, None, 0.0, 1.0]
    assert verdicts[1].reason == "error"


def test_long_completions_do_not_travel_together() -> None:
    """32 of 20 MB in one frame would be more than the worker may hold."""
    with VerifierPool(SPEC, workers=1, time_limit_s=5.0, memory_limit_mb=256) as single:
        assert {verdict.score for verdict in single.verify_batch([("x" * 20_000_000, {})] * 32)} == {1.0}
        assert single.stats.replaced == 0


def test_print_in_a_verifier_does_not_break_the_protocol(pool: VerifierPool) -> None:
    assert [verdict.score for verdict in pool.verify_batch([("print hello", {}), ("a", {})])] == [1.0, 1.0]


@pytest.mark.parametrize(("cpu_s", "score"), [(7.9, 0.0), (4.1, 0.0), (3.9, None), (0.0, None)])
def test_timeout_is_the_answers_fault_only_if_it_burnt_the_time(cpu_s: float, score: float | None) -> None:
    """Half of the limit of 8 s is the border."""
    with VerifierPool("exact", workers=1, time_limit_s=8.0) as pool:
        verdict = pool._timed_out(cpu_s, _Job("completion", "", {}, True))
        gold = pool._timed_out(cpu_s, _Job("gold", "", {}, False))
    assert verdict.score == score
    assert gold.abstained


def test_replacement_takes_less_than_a_second() -> None:
    """From the kill of a hung worker to the next verdict, with the limit itself taken off."""
    taken = []
    with VerifierPool(SPEC, workers=1, time_limit_s=1.0) as single:
        single.verify_batch([("warm", {})])
        for _ in range(3):
            started = time.monotonic()
            verdicts = single.verify_batch([("spin 30", {}), ("next", {})])
            assert [verdict.reason for verdict in verdicts] == ["timeout", "right"]
            taken.append(time.monotonic() - started - 1.0)
    assert min(taken) < 1.0, taken  # the best of three: the machine may be busy with other tests


def test_dying_spare_is_not_handed_out() -> None:
    """Everything but the pool itself may be killed from outside, the idle spare too; the kernel takes its time then."""
    with VerifierPool("verifiers_for_tests:Heavy", workers=1, time_limit_s=5.0) as single:
        for _ in range(4):
            assert [verdict.score for verdict in single.verify_batch([("a", {}), ("b", {})])] == [1.0, 1.0]
            until = time.monotonic() + 10
            while [child.memory_info().rss > 2**28 for child in workers()] != [True, True]:
                assert time.monotonic() < until, "worker and spare never came up"
                time.sleep(0.01)
            for child in workers():
                child.kill()


def test_example_that_cannot_travel_is_an_abstention(pool: VerifierPool) -> None:
    """A lambda has no pickle; its neighbours are judged all the same."""
    strange, plain = pool.verify_batch([("a", {"odd": lambda: 0}), ("b", {})])
    assert strange.abstained
    assert plain.score == 1.0


def test_limit_starts_with_the_work_not_with_the_queue() -> None:
    """200 answers of 20 ms on one worker take four limits together; none of them is over its own."""
    with VerifierPool(SPEC, workers=1, time_limit_s=1.0) as single:
        verdicts = single.verify_batch([("sleep 0.02", {}) for _ in range(200)])
    assert {verdict.reason for verdict in verdicts} == {"right"}


@pytest.mark.parametrize("command", ["child", "daemon"])
def test_kill_takes_all_that_the_verifier_started(tmp_path: Path, command: str) -> None:
    """Its process group, and what left the group and lost its parent."""
    pids = tmp_path / "pids"
    with VerifierPool(SPEC, workers=1, time_limit_s=1.0) as single:
        single.verify_batch([(command, {"pids": pids})])
        grandchild = int(pids.read_text())
        deadline = time.monotonic() + 2
        while psutil.pid_exists(grandchild) and psutil.Process(grandchild).status() != psutil.STATUS_ZOMBIE:
            assert time.monotonic() < deadline, "the worker's child survived the kill"
            time.sleep(0.01)


def test_nothing_is_left_after_close() -> None:
    with VerifierPool(SPEC, workers=2, time_limit_s=0.5) as pool:
        pool.verify_batch([("spin 9", {}), ("die", {}), ("a", {}), ("b", {})])
        assert workers()
    assert workers() == []
    zombies = [child for child in psutil.Process().children() if child.status() == psutil.STATUS_ZOMBIE]
    assert zombies == []


@pytest.mark.parametrize("busy", [False, True])
def test_workers_die_with_their_parent(busy: bool) -> None:
    """A parent killed by SIGKILL cleans up nothing; idle and spinning workers end all the same."""
    work = "spin 60" if busy else "a"
    code = (
        f"import sys, threading, time; sys.path.insert(0, {str(Path(__file__).parent)!r})\n"
        "from reward.pool import VerifierPool\n"
        f"pool = VerifierPool({SPEC!r}, workers=1, time_limit_s=60)\n"
        f"threading.Thread(target=pool.verify_batch, args=([({work!r}, {{}})],), daemon=True).start()\n"
        "time.sleep(0.5)\n"
        "import psutil\n"
        "print(*[child.pid for child in psutil.Process().children(recursive=True)], flush=True)\n"
        "time.sleep(60)\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    children = [int(pid) for pid in parent.stdout.readline().split()]
    assert len(children) == 2  # the worker and the warm spare
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    parent.stdout.close()
    deadline = time.monotonic() + 5
    while any(psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE for pid in children):
        assert time.monotonic() < deadline, "workers outlived their parent"
        time.sleep(0.02)


def test_callers_alarm_still_fires() -> None:
    """Nothing here touches the caller's signal timers."""
    fired: list[int] = []
    before = signal.signal(signal.SIGALRM, lambda number, _: fired.append(number))
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.3)
        with VerifierPool("math", workers=1) as pool:
            pool.verify_batch([("\\boxed{0.5}", {"answer": "\\frac12"})])
            time.sleep(0.5)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert fired == [signal.SIGALRM]


def test_worker_imports_neither_torch_nor_sympy() -> None:
    heavy = "{'torch', 'sympy', 'ray', 'numpy'}"
    code = f"import sys, reward.worker, reward.math, reward.code; print({heavy} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_package_stands_alone() -> None:
    """Every module of reward but the second opinion imports with the heavy libraries and the trainer out of reach."""
    code = """
import importlib, pathlib, sys
class Wall:
    def find_spec(self, name, path=None, target=None):
        top, *rest = name.split(".")
        heavy = "torch ray vllm transformers deepspeed numpy sympy math_verify pydantic yaml".split()
        if top in heavy or (top == "rlkd" and rest not in ([], ["errors"])):
            raise ImportError(f"{name} is behind the wall")
sys.meta_path.insert(0, Wall())
import reward
root = pathlib.Path(reward.__path__[0])
names = [".".join(path.relative_to(root.parent).with_suffix("").parts) for path in sorted(root.rglob("*.py"))]
for name in names:
    if not name.endswith(("__init__", "second", "sandbox_launcher")):
        importlib.import_module(name)
print(reward.load("math").verify("\\\\boxed{0.5}", {"answer": "1/2"}).score, len(names) > 30)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.stdout.strip(), done.stderr) == ("1.0 True", "")


@pytest.mark.parametrize(("name", "word"), [("always", "every"), ("never", "none")])
def test_alarm_for_a_verifier_that_says_one_thing(name: str, word: str) -> None:
    with VerifierPool(f"verifiers_for_tests:{name}", workers=1, alarm_after=50) as pool:
        pool.verify_batch([("a", {})] * 49)
        assert pool.stats.alarms == []
        pool.verify_batch([("a", {})])
        assert len(pool.stats.alarms) == 1
        assert word in pool.stats.alarms[0]


def test_no_alarm_for_a_verifier_that_tells_apart(pool: VerifierPool) -> None:
    pool.stats.alarm_after = 50
    pool.verify_batch([(str(at % 2), {"answer": "0"}) for at in range(100)])
    assert pool.stats.alarms == []


def test_wrong_spec_fails_in_the_constructor_and_leaves_nothing() -> None:
    with pytest.raises(VerifierError, match="did you mean 'math'"):
        VerifierPool("mth")
    assert workers() == []


def test_wrong_settings_are_named() -> None:
    with pytest.raises(VerifierError, match="workers >= 1"):
        VerifierPool("math", workers=0)


def test_closed_pool_refuses_work() -> None:
    pool = VerifierPool("exact", workers=1)
    pool.close()
    pool.close()
    with pytest.raises(VerifierError, match="closed"):
        pool.verify_batch([("a", {"answer": "a"})])


def test_close_while_others_wait_gives_every_caller_a_verdict() -> None:
    pool = VerifierPool(SPEC, workers=1, time_limit_s=2.0)
    results: list[int] = []
    caller = threading.Thread(target=lambda: results.append(len(pool.verify_batch([("sleep 0.05", {})] * 20))))
    caller.start()
    time.sleep(0.2)
    pool.close()
    caller.join(timeout=30)
    assert results == [20]


def test_file_descriptors_do_not_leak() -> None:
    before = len(os.listdir("/proc/self/fd"))  # noqa: PTH208
    for _ in range(3):
        with VerifierPool(SPEC, workers=1, time_limit_s=0.3) as pool:
            pool.verify_batch([("spin 9", {}), ("die", {})])
    assert len(os.listdir("/proc/self/fd")) <= before + 1  # noqa: PTH208
