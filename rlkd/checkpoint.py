"""Atomic files and checkpoints: a folder counts only once its manifest, written last, is in place."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlkd.errors import CheckpointError

FORMAT = 1
MANIFEST = "manifest.json"


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Replace a file in one step: a reader sees the old text or the new, never half."""
    half = path.with_name(f".{path.name}.tmp")
    with half.open("w", encoding="utf-8") as stream:
        json.dump(content, stream, indent=2, ensure_ascii=False)
        stream.write("\n")
        stream.flush()
        os.fsync(stream.fileno())
    half.replace(path)


def read_json(path: Path) -> dict[str, Any]:
    """Raises: CheckpointError when the file is missing or not JSON."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from None
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} does not hold a JSON object")
    return content


@dataclass(frozen=True)
class Checkpoint:
    """A complete checkpoint and what its manifest says."""

    folder: Path
    manifest: dict[str, Any]

    @property
    def step(self) -> int:
        return int(self.manifest["step"])


class Checkpoints:
    """The checkpoints of one stage, named by the number of finished steps."""

    def __init__(self, folder: Path, *, keep: int) -> None:
        self.folder = folder
        self.keep = keep

    def save(self, step: int, manifest: Mapping[str, Any], write: Callable[[Path], None]) -> Checkpoint:
        """Let ``write`` fill a hidden folder, write the manifest last, then give the folder its name."""
        final, half = self.folder / f"step-{step:06d}", self.folder / f".step-{step:06d}.tmp"
        shutil.rmtree(half, ignore_errors=True)
        half.mkdir(parents=True)
        write(half)
        content = {**manifest, "format": FORMAT, "step": step}
        write_json(half / MANIFEST, content)
        shutil.rmtree(final, ignore_errors=True)
        half.rename(final)
        for old in self._complete()[: -self.keep]:
            shutil.rmtree(old)
        return Checkpoint(final, content)

    def latest(self) -> Checkpoint | None:
        """The newest complete checkpoint; leftovers of a killed save are removed.

        Raises: CheckpointError when its format is another than this version writes.
        """
        if not self.folder.is_dir():
            return None
        for half in self.folder.glob(".step-*.tmp"):
            shutil.rmtree(half)
        complete = self._complete()
        if not complete:
            return None
        manifest = read_json(complete[-1] / MANIFEST)
        if manifest.get("format") != FORMAT:
            raise CheckpointError(
                f"{complete[-1]} has checkpoint format {manifest.get('format')}; this rlkd reads {FORMAT}"
            )
        return Checkpoint(complete[-1], manifest)

    def _complete(self) -> list[Path]:
        return sorted(path for path in self.folder.glob("step-*") if (path / MANIFEST).is_file())
