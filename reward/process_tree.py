"""A process and everything below it, as /proc shows it: who they are and what they use."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple


class Usage(NamedTuple):
    """What a process and all its descendants use together. A kernel without statistics of threads says 0 seconds."""

    memory_mb: float  # resident
    worked_s: float  # on a core
    waited_s: float  # for a core: the longest that one of their threads stood in line


def tree(pid: int) -> Iterator[tuple[int, list[str]]]:
    """A process and all its descendants that can be seen, each with its threads; those that left its session too."""
    queue = [pid]
    while queue:
        current = queue.pop()
        try:
            tasks = os.listdir(f"/proc/{current}/task")  # noqa: PTH208
        except OSError:
            continue
        yield current, tasks
        for task in tasks:
            queue += map(int, _read(f"/proc/{current}/task/{task}/children", "").split())


def usage(pid: int) -> Usage:
    """Of a process and all its descendants, in one walk."""
    pages, threads = 0, []
    for each, tasks in tree(pid):
        pages += int(_read(f"/proc/{each}/statm", "0 0").split()[1])
        threads += [_read(f"/proc/{each}/task/{task}/schedstat", "0 0 0").split() for task in tasks]
    return Usage(
        memory_mb=pages * os.sysconf("SC_PAGE_SIZE") / 2**20,
        worked_s=sum(int(times[0]) for times in threads) / 1e9,
        waited_s=max((int(times[1]) for times in threads), default=0) / 1e9,
    )


def _read(path: str, gone: str) -> str:
    """A file of /proc; what it describes may end at any time."""
    try:
        return Path(path).read_text() or gone
    except OSError:
        return gone
