"""Running steps: a run killed at any point resumes to the same result, and nothing is written half."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from rlkd.data.cards import load_card
from rlkd.data.curate import STEPS, Decision, Step, build_step, curate, curated_rows
from rlkd.data.curate import parts as parts_module
from rlkd.data.curate.parts import build_steps
from rlkd.data.curate.spec import CurationSpec
from rlkd.data.rows import Row, good_rows, write_rows
from rlkd.errors import DataCardError, RlkdError

SPEC: list[dict[str, Any]] = [
    {"step": "question_filter"},
    {"step": "exact_dedup"},
    {"step": "near_dedup", "threshold": 0.7},
    {"step": "length_filter", "max_prompt": 60},
]


def result(folder: Path) -> dict[str, bytes]:
    """Everything a run leaves behind, except times and how much was reused."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != "report.json"
    }


def run(source: Path, out: Path) -> None:
    curate(source, [build_step(spec) for spec in SPEC], out, reading=load_card("mawps").reading, part_rows=300)


def main(source: str, out: str) -> None:
    """Entry of the child process that is killed."""
    run(Path(source), Path(out))


@pytest.fixture(scope="module")
def uninterrupted(data_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("whole")
    run(data_dir / "mawps.jsonl", out)
    return out


class DiesError(Exception):
    """Stands for any crash in the middle of a part."""


@pytest.mark.parametrize("call", range(1, 20, 3))
def test_a_step_that_dies_resumes_to_the_same_bytes(
    call: int, uninterrupted: Path, data_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """2,065 rows are 7 parts; the n-th part to be written dies, over reading and all four steps."""
    calls = 0
    write = write_rows

    def dying(path: Path, rows: list[Row]) -> int:
        nonlocal calls
        calls += 1
        if calls == 2 * call:  # two files a part: what goes on, and what was removed
            raise DiesError
        return write(path, rows)

    monkeypatch.setattr("rlkd.data.curate.run.write_rows", dying)
    with pytest.raises(DiesError):
        run(data_dir / "mawps.jsonl", tmp_path)
    with pytest.raises(DataCardError, match="no finished curation"):
        list(curated_rows(tmp_path))
    monkeypatch.undo()
    run(data_dir / "mawps.jsonl", tmp_path)
    assert result(tmp_path) == result(uninterrupted)


def test_a_killed_process_resumes_to_the_same_bytes(uninterrupted: Path, data_dir: Path, tmp_path: Path) -> None:
    """SIGKILL: no handler, no finally."""
    code = f"import sys; sys.path.insert(0, sys.argv[1]); from {Path(__file__).stem} import *; main(*sys.argv[2:])"
    here = str(Path(__file__).parent)
    child = subprocess.Popen([sys.executable, "-c", code, here, str(data_dir / "mawps.jsonl"), str(tmp_path)])
    deadline = time.monotonic() + 60
    while not list(tmp_path.glob("02-*/done-00003.json")) and child.poll() is None and time.monotonic() < deadline:
        time.sleep(0.002)
    child.send_signal(signal.SIGKILL)
    child.wait()
    assert not (tmp_path / "report.json").is_file(), "it was killed before the end"
    run(data_dir / "mawps.jsonl", tmp_path)
    for path in list(tmp_path.rglob("*.tmp")):  # hidden; never a half file under a real name
        assert path.name.startswith(".")
        path.unlink()
    assert result(tmp_path) == result(uninterrupted)


def test_a_second_run_reuses_every_part(data_dir: Path, tmp_path: Path) -> None:
    run(data_dir / "mawps.jsonl", tmp_path)
    reports = curate(
        data_dir / "mawps.jsonl",
        [build_step(s) for s in SPEC],
        tmp_path,
        reading=load_card("mawps").reading,
        part_rows=300,
    )
    assert all(report.reused_parts == report.parts == 7 for report in reports)


def test_no_row_is_lost(uninterrupted: Path) -> None:
    """Every row that entered is either kept or in a list of removed rows, once."""
    removed = [row["row"] for path in sorted(uninterrupted.glob("*/removed-*.jsonl")) for row in good_rows(path)]
    kept = [row["row"] for row in curated_rows(uninterrupted)]
    assert sorted(removed + kept) == list(range(1, 2066))
    assert len(removed) > 80  # mawps has 87 repeated questions


def test_other_settings_or_another_source_are_refused(tmp_path: Path) -> None:
    write_rows(tmp_path / "a.jsonl", [{"question": "q", "answer": "1"}])
    curate(tmp_path / "a.jsonl", [build_step({"step": "near_dedup", "threshold": 0.8})], tmp_path / "out")
    with pytest.raises(DataCardError, match="other settings"):
        curate(tmp_path / "a.jsonl", [build_step({"step": "near_dedup", "threshold": 0.7})], tmp_path / "out")
    write_rows(tmp_path / "a.jsonl", [{"question": "other", "answer": "1"}])
    with pytest.raises(DataCardError, match="another source"):
        curate(tmp_path / "a.jsonl", [], tmp_path / "out")


def test_rows_that_cannot_be_read_are_set_aside(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text(
        '{"input": "q", "target": 3.0, "type": "t", "idx": 1}\nnot json\n{"input": "q"}\n'
    )
    (report,) = curate(tmp_path / "a.jsonl", [], tmp_path / "out", reading=load_card("mawps").reading)
    assert (report.rows_in, report.rows_out) == (3, 1)
    assert [row["row"] for row in good_rows(tmp_path / "out/00-read/removed-00000.jsonl")] == [2, 3]
    assert [row["answer"] for row in curated_rows(tmp_path / "out")] == ["3"]


def test_a_step_must_decide_about_every_row(tmp_path: Path) -> None:
    class Forgetful(Step):
        def decide(self, rows: Sequence[Row]) -> list[Decision]:
            return [Decision(row) for row in rows[1:]]

    write_rows(tmp_path / "a.jsonl", [{"question": "q"}, {"question": "r"}])
    with pytest.raises(DataCardError, match="1 decisions for 2 rows"):
        curate(tmp_path / "a.jsonl", [Forgetful()], tmp_path / "out")


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({"step": "near_dedup", "treshold": 0.8}, "treshold"),
        ({"step": "near_dedup", "threshold": 1.8}, "less than 1"),
        ({"step": "pass_rate_filter"}, "pass_rate: Field required"),
        ({"step": "length_filter", "token_counter": "x"}, "token_counter: comes from the curation"),
        ({"step": "near_dedupe"}, "did you mean 'near_dedup'"),
        ({"threshold": 0.5}, "needs 'step: NAME'"),
    ],
)
def test_a_wrong_step_says_what_is_wrong(spec: dict[str, object], message: str) -> None:
    with pytest.raises(RlkdError, match=message):
        build_step(spec)


def test_a_step_knows_its_models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another teacher is another step: a run that goes on must not mix their answers."""
    monkeypatch.setattr(parts_module, "_find_model", lambda *_: None)
    monkeypatch.setattr(parts_module, "_scorer", lambda name, _: lambda pairs: [name] * len(pairs))
    steps: list[dict[str, Any]] = [{"step": "perplexity_filter", "max_perplexity": 3.0}, {"step": "exact_dedup"}]
    for teacher in ("one", "two"):
        built = build_steps(CurationSpec(source="x", teacher=teacher, steps=steps), tmp_path)
        assert [step.settings().get("made_of") for step in built] == [{"scorer": teacher}, None]


def test_every_step_says_what_it_does() -> None:
    assert all((STEPS[name].__doc__ or "").strip() and STEPS[name].kind == name for name in STEPS)
