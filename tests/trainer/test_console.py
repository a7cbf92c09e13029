"""Progress without a terminal: a log file gets few lines, and each once."""

from __future__ import annotations

import io

import pytest
from rich.console import Console as RichConsole

from rlkd.trainer.console import PLAIN_EVERY_S, Bar


def test_plain_progress_is_told_seldom_and_its_end_once(monkeypatch: pytest.MonkeyPatch) -> None:
    now, text = [100.0], io.StringIO()
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    bar = Bar(RichConsole(file=text, force_terminal=False, highlight=False), "sft", 6)
    for step in (1, 2, 3):
        bar.update(step, "loss 1.000")
    now[0] += PLAIN_EVERY_S
    for step in (4, 5, 6, 6):
        bar.update(step, "loss 1.000")
    assert text.getvalue().splitlines() == [f"sft {step}/6  loss 1.000" for step in (1, 4, 6)]
