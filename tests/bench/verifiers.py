"""Figures of the verifiers, one command each:

    python tests/bench/verifiers.py errors       # error rates against plain math-verify, same inputs, same run
    python tests/bench/verifiers.py throughput   # answers a second on two workers; math-verify in one process
    python tests/bench/verifiers.py kill         # seconds to kill and replace a hung worker
    python tests/bench/verifiers.py memory       # largest resident memory of a worker under allocation attacks
    python tests/bench/verifiers.py hostile --n 10000

Real data is read from the folder in RLKD_SHARED (default: shared beside the repository).
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import sys
import threading
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import psutil

from reward.pool import VerifierPool
from reward.registry import Spec
from reward.text import last_box
from rlkd.audit import KIND_VERIFIERS, read_cases

ROOT = Path(__file__).resolve().parents[2]
SHARED = Path(os.environ.get("RLKD_SHARED", ROOT.parent / "shared"))
PLAIN = "reward.second:math_verify_says"
Labelled = list[tuple[str, dict[str, Any], bool]]  # completion, example, whether it should be accepted


def rows(name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (SHARED / "data" / f"{name}.jsonl").read_text().splitlines()]


def own_solutions(name: str) -> Labelled:
    """Each worked solution with its own gold (right) and with the gold of the next problem that differs (wrong)."""
    if name == "minerva_math":
        pairs = [(row["solution"], last_box(row["solution"])) for row in rows(name)]
    elif name == "gsm8k_test":
        pairs = [(row["answer"], row["answer"].rpartition("####")[2].strip()) for row in rows(name)]
    else:
        pairs = [(row["solution"], row["answer"]) for row in rows(name)]
    out: Labelled = []
    for at, (text, gold) in enumerate(pairs):
        out.append((text, {"answer": gold}, True))
        other = next((g for _, g in pairs[at + 1 :] + pairs[:at] if str(g) != str(gold)), None)
        out.append((text, {"answer": other}, False))
    return out


def model_solutions() -> Labelled:
    """Four models' traces on GSM8K with the labels published beside them."""
    models = ("6b_finetuning", "6b_verification", "175b_finetuning", "175b_verification")
    return [
        (row[model]["solution"], {"answer": row["ground_truth"].rpartition("A:")[2].strip()}, row[model]["is_correct"])
        for row in rows("gsm8k_example_model_solutions")
        for model in models
    ]


def reported() -> Labelled:
    cases = [case for case in read_cases(SHARED / "cases" / "verifier.jsonl") if case["confidence"] == "firm"]
    return [
        (case["completion"], {"answer": case["gold"], "kind": case["kind"]}, case["expected"])
        for case in cases
        if case["kind"] not in KIND_VERIFIERS
    ]


def judge(spec: Spec, labelled: Labelled) -> str:
    started = time.perf_counter()
    with VerifierPool(spec, workers=2, time_limit_s=8.0, memory_limit_mb=2048, alarm_after=10**9) as pool:
        verdicts = pool.verify_batch([(text, example) for text, example, _ in labelled])
        replaced = pool.stats.replaced
    seconds = time.perf_counter() - started
    accepted = [verdict.score == 1.0 for verdict in verdicts]
    expected = [label for _, _, label in labelled]
    false_positive = sum(a and not e for a, e in zip(accepted, expected, strict=True)) / max(1, expected.count(False))
    false_negative = sum(e and not a for a, e in zip(accepted, expected, strict=True)) / max(1, expected.count(True))
    abstained = sum(verdict.abstained for verdict in verdicts) / len(verdicts)
    return (
        f"FP {false_positive:7.2%}   FN {false_negative:7.2%}   abstained {abstained:6.2%}   "
        f"{seconds:6.1f} s   {replaced} workers replaced"
    )


def errors(_: argparse.Namespace) -> None:
    sets: dict[str, Callable[[], Labelled]] = {
        "reported cases (firm)": reported,
        "gsm8k model traces": model_solutions,
        **{name: partial(own_solutions, name) for name in ("math500", "aime24", "minerva_math", "gsm8k_test")},
    }
    for name, make in sets.items():
        labelled = make()
        wrong = sum(not label for _, _, label in labelled)
        print(f"{name}: {len(labelled) - wrong} right, {wrong} wrong", flush=True)
        for title, spec in (("rlkd math", "math"), ("math-verify", PLAIN)):
            print(f"    {title:12} {judge(spec, labelled)}", flush=True)


def workload(size: int, pathological: float) -> list[tuple[str, dict[str, Any]]]:
    """Real traces and solutions, shuffled with a seed, a share of them replaced by reported hang inputs."""
    base = [(text, example) for text, example, _ in model_solutions() + own_solutions("math500")]
    draw = random.Random(0)
    hangs = [
        (case["completion"], {"answer": case["gold"]})
        for case in read_cases(SHARED / "cases" / "verifier.jsonl")
        if case["kind"] in ("hang_cpu", "memory")
    ]
    picked = [draw.choice(base) for _ in range(size)]
    for at in draw.sample(range(size), round(size * pathological)):
        picked[at] = draw.choice(hangs)
    return picked


def throughput(options: argparse.Namespace) -> None:
    from reward.second import math_verify_says

    for share in (0.0, 0.01):
        ours = workload(options.n or 20_000, share)
        with VerifierPool("math", workers=2, alarm_after=10**9) as pool:
            pool.verify_batch(ours[:64])
            started = time.perf_counter()
            pool.verify_batch(ours)
            rate = len(ours) / (time.perf_counter() - started)
        plain = workload(1000, share)
        started = time.perf_counter()
        for text, example in plain:
            math_verify_says(text, example)
        slow = len(plain) / (time.perf_counter() - started)
        print(
            f"{share:.0%} pathological: rlkd, 2 workers {rate:8.0f}/s ({len(ours)} answers);   "
            f"math-verify, 1 process {slow:6.1f}/s ({len(plain)} answers)",
            flush=True,
        )


def spin(completion: str, example: dict[str, Any]) -> bool:  # noqa: ARG001 - a verifier for the kill figure
    """Hangs on "hang" in one operation that never returns to the interpreter."""
    return completion != "hang" or bool(9 ** (9**9))


def hoard(completion: str, example: dict[str, Any]) -> bool:  # noqa: ARG001
    """Takes all memory that it can get, and touches it."""
    taken = []
    while True:
        taken.append(b"x" * 10_000_000)


def kill(options: argparse.Namespace) -> None:
    limit, taken = 1.0, []
    with VerifierPool(f"{Path(__file__).stem}:spin", workers=1, time_limit_s=limit) as pool:
        pool.verify_batch([("warm", {})])
        for _ in range(options.n or 10):
            started = time.perf_counter()
            hung, after = pool.verify_batch([("hang", {}), ("next", {})])
            taken.append(time.perf_counter() - started - limit)
            assert hung.reason in ("timeout", "memory"), hung
            assert after.score == 1.0, after
    typical = statistics.median(taken)
    print(f"from the limit to the next answer's verdict: median {typical:.3f} s, worst {max(taken):.3f} s")


def memory(options: argparse.Namespace) -> None:
    peak, stop = 0, threading.Event()

    def watch() -> None:
        nonlocal peak
        while not stop.is_set():
            for child in psutil.Process().children(recursive=True):
                try:
                    peak = max(peak, child.memory_info().rss)
                except psutil.Error:
                    continue
            time.sleep(0.002)

    watcher = threading.Thread(target=watch)
    watcher.start()
    with VerifierPool(f"{Path(__file__).stem}:hoard", workers=2, memory_limit_mb=1024) as pool:
        verdicts = pool.verify_batch([("x", {})] * (options.n or 20))
    stop.set()
    watcher.join()
    largest = f"largest worker {peak / 2**20:.0f} MB"
    print(f"{len(verdicts)} attacks, limit 1024 MB: {largest}; verdicts {dict(pool.stats.reasons)}")


HOSTILE = {
    "fork bomb": "import os\nwhile True:\n    try: os.fork()\n    except OSError: pass",
    "sleep": "import time\ntime.sleep(1000)",
    "memory": "x = []\nwhile True: x.append(bytearray(10**8))",
    "network": "import socket\nsocket.create_connection(('1.1.1.1', 53), 2)",
    "loopback": "import socket\ns = socket.socket(); s.bind(('127.0.0.1', 0)); s.listen(); s.accept()",
    "file write": "for d in ('/usr', '/etc', '/root', '/home', '/work', '/tmp', '/dev', '/'):\n"
    "    try: open(d + '/rlkd-planted', 'w').write('x')\n    except OSError: pass",
    "disk": "f = open('/work/big', 'wb')\nwhile True: f.write(b'x' * 10**6)",
    "ignore signals": "import signal, time\nfor s in range(1, 65):\n    try: signal.signal(s, signal.SIG_IGN)\n"
    "    except (OSError, ValueError): pass\ntime.sleep(1000)",
    "kill everybody": "import os\nfor p in (os.getppid(), 1, -1, 0):\n    try: os.kill(p, 9)\n    except OSError: pass",
    "kill by number": "import os\nfor p in range(1, 33000):\n    try: os.kill(p, 9)\n    except OSError: pass",
    "daemon": "import os, time\nif os.fork() == 0:\n    os.setsid()\n    if os.fork() == 0: time.sleep(1000)\nprint(1)",
    "threads": "import threading, time\nwhile True: threading.Thread(target=time.sleep, args=(1000,)).start()",
    "output": "while True: print('x' * 100000)",
    "recursion": "import sys\nsys.setrecursionlimit(10**9)\ndef f(): f()\nf()",
    "spin": "while True: pass",
    "stop itself": "import os, signal\nos.kill(os.getpid(), signal.SIGSTOP)",
    "trace": "import ctypes\nfor p in range(1, 3000): ctypes.CDLL(None).ptrace(16, p, 0, 0)",
    "namespaces": "import ctypes\nlibc = ctypes.CDLL(None)\nprint(libc.unshare(0x10000000 | 0x20000))\n"
    "libc.mount(b'x', b'/work', b'tmpfs', 0, 0)",
    "exec a shell": "import os\nos.execv('/bin/sh', ['sh', '-c', 'while :; do :; done'])",
    "nice": "import os\nos.nice(19)\nwhile True: pass",
}


def hostile(options: argparse.Namespace) -> None:
    """Every submission must score 0 without an abstention; afterwards nothing runs, nothing is planted."""
    names = [list(HOSTILE)[at % len(HOSTILE)] for at in range(options.n or 200)]
    suite = {"type": "stdio", "tests": [["", "never printed"]]}
    items = [(f"```python\n{HOSTILE[name]}\n```", {"tests": suite}) for name in names]
    spec = {"name": "code", "time_limit_s": options.limit, "total_s": options.limit}
    before = {process.pid for process in psutil.process_iter()}
    started = time.perf_counter()
    with VerifierPool(spec, workers=options.workers, time_limit_s=options.limit + 6, alarm_after=10**9) as pool:
        verdicts = pool.verify_batch(items)
        replaced, slowest = pool.stats.replaced, pool.stats.slowest_s
        reasons = dict(pool.stats.reasons)
    seconds = time.perf_counter() - started
    left = [process for process in psutil.process_iter() if process.pid not in before and _ours(process)]
    _, left = psutil.wait_procs(left, timeout=15)  # another pool on this machine may be at work: its sandboxes end soon
    planted = [str(path) for pattern in ("rlkd-planted", "*/rlkd-planted") for path in Path("/").glob(pattern)]
    rewarded = [name for name, verdict in zip(names, verdicts, strict=True) if verdict.score != 0.0]
    print(f"{len(names)} submissions of {len(HOSTILE)} kinds in {seconds:.0f} s, slowest {slowest:.1f} s: {reasons}")
    print(f"not scored 0: {len(rewarded)} {sorted(set(rewarded))}; workers replaced: {replaced}")
    print(f"processes left: {len(left)}; files planted: {planted}")
    if rewarded or left or planted:
        sys.exit(1)


def _ours(process: psutil.Process) -> bool:
    try:
        return process.uids().real >= 2_000_000 or "sandbox_launcher" in " ".join(process.cmdline())
    except psutil.Error:
        return False


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    figures = {"errors": errors, "throughput": throughput, "kill": kill, "memory": memory, "hostile": hostile}
    parser.add_argument("figure", choices=figures)
    parser.add_argument("--n", type=int, default=0, help="how many answers, kills or submissions")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--limit", type=float, default=1.0, help="seconds for one hostile program")
    options = parser.parse_args(arguments)
    figures[options.figure](options)


if __name__ == "__main__":
    main()
