"""What an installed copy has: the wheel is built from the tree, unpacked, and used from there."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

ROOT = Path(__file__).parents[2]
FILES = ("pyproject.toml", "README.md", "LICENSE")
FOLDERS = ("rlkd", "reward", "data_cards")


def python(code: str, *, folder: Path, **environment: str) -> str:
    kept = {name: value for name, value in os.environ.items() if name not in ("RLKD_CARDS_DIR", "PYTHONPATH")}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=folder, env=kept | environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout.splitlines()[-1]


def test_the_wheel_brings_every_card_and_the_reports_files(tmp_path: Path) -> None:
    source, installed = tmp_path / "source", tmp_path / "installed"
    source.mkdir()
    for part in FILES:  # copies: a build writes beside what it reads
        shutil.copy(ROOT / part, source / part)
    for part in FOLDERS:
        shutil.copytree(ROOT / part, source / part, ignore=shutil.ignore_patterns("__pycache__"))
    name = python("from setuptools import build_meta; print(build_meta.build_wheel('..'))", folder=source)
    with zipfile.ZipFile(tmp_path / name) as wheel:
        wheel.extractall(installed)
    code = "from rlkd.data import cards; print(cards.__file__, *cards.card_names(), cards.load_card('svamp').name)"
    place, *names = python(code, folder=tmp_path, PYTHONPATH=str(installed)).split()
    assert Path(place).is_relative_to(installed)
    assert names == [*sorted(path.stem for path in (ROOT / "data_cards").glob("*.yaml")), "svamp"]
    assert {path.name for path in (installed / "rlkd" / "report").glob("page.*")} == {"page.py", "page.css", "page.js"}
