"""The child process of a VerifierPool: ``python -m reward.worker``. Reads jobs from stdin, writes verdicts to stdout.

Parent to child: pickle frames (trusted). Child to parent: JSON frames, one for each answer as soon as it is judged,
so that the parent's clock runs per answer although several travel together.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import pickle
import resource
import signal
import struct
from collections.abc import Mapping
from typing import IO, Any

from reward.protocol import Verifier, rollout_reads
from reward.registry import load
from reward.verdict import Verdict

HEADER = struct.Struct(">I")
PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36


def write_frame(stream: IO[bytes], payload: bytes) -> None:
    stream.write(HEADER.pack(len(payload)) + payload)
    stream.flush()


def read_frame(stream: IO[bytes]) -> bytes | None:
    """The next frame, or None when the other side is gone."""
    header = stream.read(HEADER.size)
    if len(header) < HEADER.size:
        return None
    (size,) = HEADER.unpack(header)
    payload = stream.read(size)
    return payload if len(payload) == size else None


def die_with_parent(parent: int) -> None:
    """Ask the kernel to kill this process with the thread that started it, however busy it is then."""
    with contextlib.suppress(OSError, AttributeError):  # not Linux: the closed pipe ends an idle worker
        libc = ctypes.CDLL(None, use_errno=True)
        libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        libc.prctl(PR_SET_CHILD_SUBREAPER, 1)  # what a verifier starts and abandons stays below this process
    if parent and os.getppid() != parent:  # it died before the call
        os._exit(1)


def limit_memory(megabytes: int) -> None:
    size = megabytes * 2**20
    resource.setrlimit(resource.RLIMIT_AS, (size, size))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def judge(verifier: Verifier, kind: str, completion: Any, example: Mapping[str, Any]) -> tuple[Verdict, bool]:
    """One answer, with every fault of the verifier turned into a verdict that says so; and whether memory ran out."""
    try:
        return (verifier.check_gold(example) if kind == "gold" else verifier.verify(completion, example)), False
    except MemoryError:
        return Verdict.wrong(reason="memory", detail="over the memory limit"), True
    except RecursionError:
        return Verdict.wrong(reason="unparsed", detail="nested too deeply"), False
    except BaseException as error:  # SystemExit and KeyboardInterrupt too: a verifier must not end its worker
        return Verdict.abstain("error", f"{type(error).__name__}: {error}"[:500]), False


def frame_of(token: int, verdict: Verdict, spoiled: bool) -> bytes:
    """A verdict as its frame; one that JSON cannot hold is an abstention."""
    try:
        return json.dumps({"token": token, "verdict": verdict.to_json(), "spoiled": spoiled}).encode()
    except (TypeError, ValueError) as error:
        return frame_of(token, Verdict.abstain("error", f"{type(error).__name__}: {error}"[:500]), spoiled)


def main() -> None:
    source, sink = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)  # an input() in a verifier must not eat frames
    os.dup2(2, 1)  # a print in a verifier must not end up among the frames
    first = read_frame(source)
    if first is None:
        return
    start = pickle.loads(first)
    die_with_parent(start["parent"])
    limit_memory(start["memory_limit_mb"])
    try:
        verifier = load(start["spec"])
        reads = sorted(rollout_reads(verifier))
    except Exception as error:
        write_frame(sink, json.dumps({"failed": f"{type(error).__name__}: {error}"}).encode())
        return
    write_frame(sink, json.dumps({"ready": verifier.name, "reads": reads}).encode())
    while (frame := read_frame(source)) is not None:
        jobs = pickle.loads(frame)
        if not jobs:  # asked whether it is there
            write_frame(sink, b"{}")
        for token, kind, completion, example in jobs:
            write_frame(sink, frame_of(token, *judge(verifier, kind, completion, example)))


if __name__ == "__main__":
    main()
