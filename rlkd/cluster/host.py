"""The process behind every Ray actor: its own log file, then whatever object the driver asks it to build."""

from __future__ import annotations

import faulthandler
import importlib
import os
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rlkd.errors import RlkdError


class WorkerError(Exception):
    """What went wrong in a worker, as text: a library's own exception may not survive the way to the driver."""


@contextmanager
def _told() -> Iterator[None]:
    """Errors of ours travel as they are; others leave their traceback in the log and travel as text."""
    try:
        yield
    except RlkdError:
        raise
    except Exception as error:
        traceback.print_exc()
        raise WorkerError(f"{type(error).__name__}: {error}") from None


class Host:
    """Builds ``module:Class`` on request and forwards calls to it. Light until then: start-up errors are ours."""

    def __init__(self, log_file: str) -> None:
        Path(log_file).parent.mkdir(parents=True, exist_ok=True)
        stream = os.open(log_file, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        sys.stdout.flush()
        sys.stderr.flush()
        os.dup2(stream, 1)
        os.dup2(stream, 2)
        faulthandler.enable()
        self.target: Any = None

    def build(self, target: str, *args: Any, **kwargs: Any) -> str:
        """Construct the worker. Returns: the process id, as a sign of life."""
        module, _, name = target.partition(":")
        with _told():
            self.target = getattr(importlib.import_module(module), name)(*args, **kwargs)
        return str(os.getpid())

    def call(self, method: str, *args: Any, **kwargs: Any) -> Any:
        """Forward to the worker."""
        with _told():
            return getattr(self.target, method)(*args, **kwargs)

    def address(self) -> tuple[str, int]:
        """This node's address and a port that the operating system just gave out."""
        import socket

        import ray

        with socket.socket() as probe:
            probe.bind(("", 0))
            return str(ray.util.get_node_ip_address()), int(probe.getsockname()[1])
