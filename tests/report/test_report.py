"""The report says what the run folder says, needs nothing outside itself, and reads unfinished runs."""

from __future__ import annotations

import json
import re
import xml.etree.ElementTree as Xml
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from rlkd.errors import CheckpointError
from rlkd.report import read_run, show_rollouts, write_report
from rlkd.report.curves import HEIGHT, LEFT, RIGHT, TOP, WIDTH, Curve, draw_curve
from rlkd.report.reading import readable_tokens


class Page(HTMLParser):
    """Attributes that would fetch something, text outside scripts, and the scripts."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.links: list[str] = []
        self.text = ""
        self.scripts: list[str] = []
        self.tags: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.links += [value or "" for name, value in attrs if name in ("src", "href", "action", "data")]
        if tag == "script":
            self.scripts.append("")

    def handle_data(self, data: str) -> None:
        if self.lasttag == "script" and self.scripts:
            self.scripts[-1] += data
        elif self.lasttag != "style":
            self.text += data


def page(folder: Path) -> Page:
    return Page(write_report(folder).read_text(encoding="utf-8"))


def embedded(found: Page) -> dict[str, list[dict[str, Any]]]:
    loaded: dict[str, list[dict[str, Any]]] = json.loads(found.scripts[0])
    return loaded


def test_the_file_needs_nothing_else(finished_folder: Path) -> None:
    text = write_report(finished_folder).read_text(encoding="utf-8")
    assert Page(text).links == []
    assert not re.search(r"url\(|@import|https?://|fetch\(|XMLHttpRequest", text)


def test_summary_and_intervals_are_shown(finished_folder: Path) -> None:
    text = page(finished_folder).text
    assert "40.0% → 72.5%" in text
    assert "68.5% to 76.5%" in text
    assert "12,345" in text
    assert "17" in text


def test_an_unfinished_run_can_be_read(run_folder: Path) -> None:
    with (run_folder / "metrics.jsonl").open("a", encoding="utf-8") as stream:
        stream.write('{"stage": "kdrl", "st')  # being written right now
    found = page(run_folder)
    assert "not finished" in found.text
    assert "36.0% to 44.0%" in found.text, "stages that are done have their evaluation"
    assert len(read_run(run_folder).metrics) == 20


def test_a_damaged_line_is_an_error_that_names_the_file(run_folder: Path) -> None:
    path = run_folder / "metrics.jsonl"
    path.write_text("no json\n" + path.read_text(encoding="utf-8"), encoding="utf-8")
    with pytest.raises(CheckpointError, match=r"metrics\.jsonl"):
        read_run(run_folder)


def test_text_of_a_model_cannot_become_markup(run_folder: Path) -> None:
    found = page(run_folder)
    assert found.tags.count("script") == 2, "the prompt's </script> ended none of ours"
    assert "b" not in found.tags or "a <b>run</b>" in found.text
    assert embedded(found)["step 5"][0]["prompt"] == "6 x 7 = </script><b>"


def test_rollouts_keep_every_signal(run_folder: Path) -> None:
    rows = embedded(page(run_folder))["step 5"]
    assert [row["score"] for row in rows] == [1.0, 0.0, None]
    assert rows[0]["tokens"] == [" 4", "2", "<|end|>"]
    assert rows[0]["teacher_logprobs"] == [-0.25, -4.0, -0.5]
    assert rows[0]["gap"] == [0.0, 1e-6, 0.0], "taken before rounding, or it would vanish"
    assert (rows[0]["staleness"], rows[0]["min_version"], rows[0]["max_version"]) == (1, 3, 4)


def test_a_folder_without_a_run_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="holds no run"):
        write_report(tmp_path)


def test_curve_spans_its_panel() -> None:
    """The largest value touches the top, first and last step the sides."""
    svg = re.search(r"<svg.*</svg>", draw_curve(Curve("reward", [(1, 0.0), (2, 1.0), (3, 0.5)])))
    assert svg is not None
    drawn = Xml.fromstring(svg.group(0))
    path = next(element for element in drawn.iter() if element.get("class") == "line").get("d", "")
    points = [tuple(map(float, pair.split(","))) for pair in path[1:].split("L")]
    bottom = HEIGHT - 18.0
    assert points == [(LEFT, bottom), ((LEFT + WIDTH - RIGHT) / 2, TOP), (WIDTH - RIGHT, (TOP + bottom) / 2)]


def test_logarithmic_curve_has_equal_steps_for_equal_factors() -> None:
    drawn = draw_curve(Curve("gap", [(1, 1e-6), (2, 1e-5), (3, 1e-4), (4, 0.0)], log=True))
    heights = [float(mark.split(",")[1]) for mark in re.search(r'data-marks="([^"]+)"', drawn).group(1).split(";")]  # type: ignore[union-attr]
    assert len(heights) == 3, "zero has no logarithm"
    assert heights[0] - heights[1] == pytest.approx(heights[1] - heights[2])


def test_a_curve_without_points_is_left_out() -> None:
    assert draw_curve(Curve("entropy", [])) == ""
    assert draw_curve(Curve("entropy", [(1.0, float("nan"))])) == ""


@pytest.mark.parametrize(
    ("tokens", "expected"),
    [
        (["Ġhello", "Ċ", "Ã©"], [" hello", "\n", "é"]),
        (["Ġa", "Ã"], [" a", "\\xc3"]),  # half a character
        (["Ġa", "<|end|>"], [" a", "<|end|>"]),
        (["▁hello", "world"], [" hello", "world"]),
        (["4", " ", "é"], ["4", " ", "é"]),  # a character vocabulary
    ],
)
def test_tokens_are_readable(tokens: list[str], expected: list[str]) -> None:
    assert readable_tokens(tokens) == expected


def shown(folder: Path, **options: Any) -> str:
    console = Console(record=True, width=200, force_terminal=True, color_system="truecolor", file=None, quiet=False)
    with console.capture() as captured:
        show_rollouts(folder, out=console, **options)
    return captured.get()


def test_terminal_colours_follow_the_teacher(run_folder: Path) -> None:
    """Teacher minus policy is +0.75 on the first token, -2 on the second, 0 on the last."""
    text = shown(run_folder, limit=1)
    fade = round(235 - 160 * 0.75 / 2)
    assert f"38;2;{fade};235;{fade}m 4" in text
    assert "38;2;235;75;75m2" in text
    assert "38;2;235;235;235m<|end|>" in text


def test_terminal_shows_abstentions_and_reasons(run_folder: Path) -> None:
    text = re.sub(r"\x1b\[[0-9;]*m", "", shown(run_folder))
    assert "abstained" in text
    assert "(timeout)" in text
    assert text.count("kdrl, step 5, p-") == 2, "one heading a group"


def test_terminal_names_the_steps_there_are(run_folder: Path) -> None:
    with pytest.raises(CheckpointError, match="none kept at step 4; there are kdrl 5"):
        show_rollouts(run_folder, step=4)


def test_stages_keep_their_own_rollouts(run_folder: Path) -> None:
    """Steps count from 1 in each stage: the second's are beside the first's and not in their place."""
    recipe = json.loads((run_folder / "recipe.json").read_text())
    recipe["stages"].append({"name": "again"})
    (run_folder / "recipe.json").write_text(json.dumps(recipe))
    (run_folder / "rollouts" / "again").mkdir()
    first = (run_folder / "rollouts" / "kdrl" / "step-000005.jsonl").read_text(encoding="utf-8")
    (run_folder / "rollouts" / "again" / "step-000005.jsonl").write_text(first, encoding="utf-8")
    assert list(read_run(run_folder).rollouts) == [("kdrl", 5), ("again", 5)]
    assert list(embedded(page(run_folder))) == ["kdrl, step 5", "again, step 5"]
    assert "again, step 5, p-" in shown(run_folder)
    assert "kdrl, step 5, p-" in shown(run_folder, stage="kdrl")
    with pytest.raises(CheckpointError, match="none kept at stage 'kdrl' step 4; there are kdrl 5, again 5"):
        show_rollouts(run_folder, step=4, stage="kdrl")
