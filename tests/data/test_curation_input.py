"""What users feed a curation: damaged files, shards, other shapes. Rows are named, the rest goes on, slips stop it."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from rlkd.data.cards import DataCard, Reading, cards_folder
from rlkd.data.curate import Step, build_step, curate, curated_rows
from rlkd.data.curate import run as run_module
from rlkd.data.curate.parts import build_steps
from rlkd.data.curate.report import StepReport
from rlkd.data.curate.spec import CurationSpec, run_spec
from rlkd.data.rows import BadRow, Row, good_rows, read_rows, write_rows
from rlkd.errors import DataCardError


def good(at: int, **more: Any) -> Row:
    traces = [{"text": f"right {at}", "model": "a"}, {"text": f"wrong {at}", "model": "b"}]
    return {"id": f"r{at}", "question": f"question {at}", "answer": at, "traces": traces, **more}


def numbers(out: Path) -> list[int]:
    return [row["row"] for row in curated_rows(out)]


def removed(out: Path, step: str = "00-read") -> list[Row]:
    return [row for path in sorted((out / step).glob("removed-*.jsonl")) for row in good_rows(path)]


def test_rows_of_every_wrong_shape_are_named_and_the_others_go_on(tmp_path: Path) -> None:
    nameless = {key: value for key, value in good(4).items() if key != "question"}
    lines: dict[int, Any] = {
        1: good(1),
        2: good(2, question=None),
        3: good(3, question=7),
        4: nameless,
        5: good(5, question="  "),
        6: good(6, traces="one text"),
        7: good(7, traces=[{"text": None}, {"text": "kept"}, 3, "bare text"]),
        8: good(8, traces=[]),
        9: good(9, answer={"a": 1}),
        10: good(10, answer=3.0, id="r1"),
        11: good(11, traces=None, id=None),
    }
    data = b"\n".join(json.dumps(row).encode() for row in lines.values())
    (tmp_path / "rows.jsonl").write_bytes(data + b'\n{"question": "caf\xe9"}\n' + json.dumps(good(13)).encode()[:30])
    (report,) = curate(tmp_path / "rows.jsonl", [], tmp_path / "out")
    assert numbers(tmp_path / "out") == [1, 7, 8, 10, 11]
    assert report.named == {
        "no example": [2, 3, 4, 5, 6, 9],
        "trace without text": [7],
        "id of an earlier row (kept)": [10],
        "unreadable row": [12, 13],
    }
    said = report.line()
    assert "unreadable row: row 12, 13" in said and "no example: row 2, 3, 4, 5, 6, 9" in said
    why = {row["row"]: row["why"] for row in removed(tmp_path / "out") if "why" in row}
    assert "int 7" in why[3] and "no field 'question' (the row has id, answer" in why[4] and "UTF-8" in why[12]
    kept = {row["row"]: row for row in curated_rows(tmp_path / "out")}
    assert [trace["text"] for trace in kept[7]["traces"]] == ["kept", "bare text"]
    assert kept[10]["answer"] == "3" and "traces" not in kept[11] and kept[11]["id"] == "11"


def test_repeated_ids_are_named_over_parts_and_after_a_crash(tmp_path: Path) -> None:
    write_rows(tmp_path / "rows.jsonl", [good(at, id=f"r{at % 6}") for at in range(12)])
    (first,) = curate(tmp_path / "rows.jsonl", [], tmp_path / "out", part_rows=4)
    (tmp_path / "out/00-read/done-00002.json").unlink()  # as a crash in the last part leaves it
    (again,) = curate(tmp_path / "rows.jsonl", [], tmp_path / "out", part_rows=4)
    assert again.reused_parts == 2
    assert first.named == again.named == {"id of an earlier row (kept)": [7, 8, 9, 10, 11, 12]}


def test_nothing_usable_stops_with_the_reason(tmp_path: Path) -> None:
    write_rows(tmp_path / "rows.jsonl", [{"problem": "q", "gold": 1}])
    with pytest.raises(DataCardError, match=r"the row has problem, gold.*`reading` in a curation"):
        curate(tmp_path / "rows.jsonl", [], tmp_path / "out")
    reading = Reading.model_validate({"question": "{problem}?", "answer": {"field": "gold"}})
    curate(tmp_path / "rows.jsonl", [], tmp_path / "read", reading=reading)
    assert [(row["question"], row["answer"]) for row in curated_rows(tmp_path / "read")] == [("q?", "1")]


def test_a_step_that_leaves_nothing_stops_the_curation(tmp_path: Path) -> None:
    write_rows(tmp_path / "rows.jsonl", [good(1, topic="sum")])
    steps = [build_step({"step": "where_filter", "keep": {"topic": ["sums"]}}), build_step({"step": "exact_dedup"})]
    with pytest.raises(DataCardError, match=r"topic is none of sums 1\)\nno row is left.*'value': 'sum'"):
        curate(tmp_path / "rows.jsonl", steps, tmp_path / "out")
    assert not (tmp_path / "out/02-exact_dedup").exists() and not (tmp_path / "out/report.json").exists()


@pytest.mark.parametrize(
    "step",
    [
        {"step": "where_filter", "drop": {"topc": ["x"]}},
        {"step": "exact_dedup", "field": "topc"},
        {"step": "near_dedup", "field": "topc"},
    ],
)
def test_a_field_that_no_row_has_is_a_slip_and_leaves_room_for_the_right_one(
    step: dict[str, Any], tmp_path: Path
) -> None:
    write_rows(tmp_path / "rows.jsonl", [good(1, topic="sum"), good(2), good(3, topic="sum")])
    with pytest.raises(DataCardError, match="did you mean 'topic'"):
        curate(tmp_path / "rows.jsonl", [build_step(step)], tmp_path / "out")
    right = json.loads(json.dumps(step).replace("topc", "topic"))
    curate(tmp_path / "rows.jsonl", [build_step(right)], tmp_path / "out")  # the same folder: no part was done
    assert numbers(tmp_path / "out") == ([1, 2, 3] if step["step"] == "where_filter" else [1, 2])


@pytest.mark.parametrize("rich", [0, 4])
def test_a_part_without_the_field_or_without_rates_is_no_slip(rich: int, tmp_path: Path) -> None:
    """Sorted shards: two rows of six have a topic and a rate, in the first or in the last part."""
    rows = [good(at, **({"topic": "sum"} if at in (rich, rich + 1) else {})) for at in range(6)]
    write_rows(tmp_path / "rows.jsonl", rows)
    rates: list[Row] = [{"id": f"r{at}", "question": f"question {at}", "pass_rate": 0.1} for at in (rich, rich + 1)]
    steps = [
        rated(tmp_path, rates),
        build_step({"step": "where_filter", "drop": {"topic": ["none"]}}),
        build_step({"step": "exact_dedup", "field": "topic"}),
    ]
    curate(tmp_path / "rows.jsonl", steps, tmp_path / "out", part_rows=2)
    assert numbers(tmp_path / "out") == [at + 1 for at in range(6) if at != rich + 1]


def test_shards_are_one_source(tmp_path: Path) -> None:
    folder = tmp_path / "shards"
    folder.mkdir()
    for shard in range(3):
        write_rows(folder / f"p{shard}.jsonl", [good(10 * shard + at) for at in range(4)])
    with (folder / "p1.jsonl").open("a") as stream:
        stream.write("not json\n")
    for form in (folder, folder / "p*.jsonl", [str(folder / f"p{shard}.jsonl") for shard in range(3)]):
        out = tmp_path / f"out{type(form).__name__}{Path(str(form)).name[:2]}"
        (report,) = curate(form, [], out, part_rows=5)
        assert (report.rows_in, report.rows_out, report.parts) == (13, 12, 3)
        assert [row["id"] for row in curated_rows(out)] == [
            f"r{10 * shard + at}" for shard in range(3) for at in range(4)
        ]
        (bad,) = removed(out)
        assert (bad["row"], bad["file"], bad["line"]) == (9, "p1.jsonl", 5)
    write_rows(folder / "p2.jsonl", [good(1)])
    with pytest.raises(DataCardError, match="another source"):
        curate(folder, [], tmp_path / "outPosixPathsh", part_rows=5)
    for wrong in (folder / "q*.jsonl", [str(folder / "p0.jsonl"), str(folder / "p7.jsonl")]):
        with pytest.raises(DataCardError, match="no such data file"):
            curate(wrong, [], tmp_path / "none")


def test_a_part_ends_before_its_rows_fill_the_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_module, "PART_CHARS", 2000)
    rows = [{"question": f"q{at}", "traces": [{"text": "x" * 300}, "y" * 300]} for at in range(20)]
    write_rows(tmp_path / "rows.jsonl", rows)
    (report,) = curate(tmp_path / "rows.jsonl", [], tmp_path / "out", part_rows=1000)
    sizes = [len(list(good_rows(path))) for path in sorted((tmp_path / "out/00-read").glob("part-*.jsonl"))]
    assert sizes == [4, 4, 4, 4, 4] and report.rows_out == 20  # 602 to 603 characters a row: the fourth passes 2,000


def test_a_file_that_was_cut_off_keeps_what_can_be_read(tmp_path: Path) -> None:
    rows = [{"question": f"question {at}: {at * at * 7919}", "answer": at} for at in range(30_000)]
    packed = gzip.compress("".join(json.dumps(row) + "\n" for row in rows).encode())
    (tmp_path / "cut.jsonl.gz").write_bytes(packed[: len(packed) // 2])
    found = list(read_rows(tmp_path / "cut.jsonl.gz"))
    *whole, (number, last) = found
    assert isinstance(last, BadRow) and "cannot be read beyond this row" in last.reason and number == len(found)
    read = [row for _, row in whole if isinstance(row, dict)]
    assert read == rows[: len(read)] and len(read) > 10_000
    (tmp_path / "bad.jsonl.gz").write_bytes(b"no gzip at all")
    assert [row.number for _, row in read_rows(tmp_path / "bad.jsonl.gz") if isinstance(row, BadRow)] == [1]
    (tmp_path / "bad.parquet").write_bytes(b"PAR1 and nothing else")
    with pytest.raises(DataCardError, match="no whole parquet file"):
        list(read_rows(tmp_path / "bad.parquet"))


def test_values_that_json_has_no_form_for_do_not_stop_a_curation(tmp_path: Path) -> None:
    import datetime

    import pyarrow
    import pyarrow.parquet

    table = pyarrow.Table.from_pylist([{"question": "q", "answer": "1", "day": datetime.date(2025, 1, 2)}])
    pyarrow.parquet.write_table(table, tmp_path / "rows.parquet")
    curate(tmp_path / "rows.parquet", [], tmp_path / "out")
    assert [row["day"] for row in curated_rows(tmp_path / "out")] == ["2025-01-02"]


def test_the_result_is_flat_for_a_recipe(tmp_path: Path) -> None:
    rows = [good(1, topic="sum", metadata={"deep": 1}), {"question": "bare", "answer": "x"}]
    write_rows(tmp_path / "rows.jsonl", rows)
    curate(tmp_path / "rows.jsonl", [], tmp_path / "out")
    lines = list(good_rows(tmp_path / "out" / "train.jsonl"))
    first = {"id": "r1", "question": "question 1", "answer": "1", "topic": "sum", "row": 1}
    assert lines == [
        {**first, "solution": "right 1", "model": "a"},
        {**first, "solution": "wrong 1", "model": "b"},
        {"id": "2", "question": "bare", "answer": "x", "row": 2},
    ]


def test_what_a_trace_says_is_never_taken_for_the_rows_own(tmp_path: Path) -> None:
    trace = {"text": "it is 6", "answer": "6", "id": "t", "question": "no", "row": 9, "solution": "s", "model": "m"}
    rows = [good(1, traces=[trace], options={"A": "5", "B": "6"}, row="mine")]
    write_rows(tmp_path / "rows.jsonl", rows)
    curate(tmp_path / "rows.jsonl", [], tmp_path / "out")
    (line,) = good_rows(tmp_path / "out" / "train.jsonl")
    own = {"id": "r1", "question": "question 1", "answer": "1", "row": 1, "solution": "it is 6", "source_row": "mine"}
    said = {f"trace_{key}": trace[key] for key in ("answer", "id", "question", "row", "solution")}
    assert line == {**own, "options": {"A": "5", "B": "6"}, "model": "m", **said}


def test_rows_of_another_origin_are_another_source(tmp_path: Path) -> None:
    """A hub card whose revision is pinned, after a run on another one."""
    for revision in ("one", "one"):
        curate(iter([good(1)]), [], tmp_path / "out", rows_from=["card", "hub", None, revision])
    with pytest.raises(DataCardError, match="another source"):
        curate(iter([good(2)]), [], tmp_path / "out", rows_from=["card", "hub", None, "two"])


def test_a_hub_card_says_which_revision_its_rows_are_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        DataCard, "_hub_rows", lambda *_: iter([(1, {"input": "q", "target": 1, "type": "t", "idx": 1})])
    )
    card = yaml.safe_load((cards_folder() / "mawps.yaml").read_text("utf-8"))
    monkeypatch.setenv("RLKD_CARDS_DIR", str(tmp_path))
    spec = CurationSpec(card="mawps", steps=[])
    for revision in ("one", "one", "two"):
        card["source"] |= {"file": None, "hub": "some/set", "revision": revision}
        (tmp_path / "mawps.yaml").write_text(yaml.safe_dump(card))
        if revision == "one":
            run_spec(spec, tmp_path / "out")
    with pytest.raises(DataCardError, match="another source"):
        run_spec(spec, tmp_path / "out")


@pytest.mark.parametrize("lines", ["", "\n\n"])
def test_a_source_without_rows_is_named(lines: str, tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text(lines)
    with pytest.raises(DataCardError, match=r"rows\.jsonl holds no row"):
        curate(tmp_path / "rows.jsonl", [], tmp_path / "out")
    write_rows(tmp_path / "rows.jsonl", [good(1)])
    curate(tmp_path / "rows.jsonl", [], tmp_path / "out")  # the same folder: nothing was done


def rated(tmp_path: Path, rates: list[Row]) -> Step:
    write_rows(tmp_path / "rates.jsonl", rates)
    steps: list[dict[str, Any]] = [{"step": "pass_rate_filter", "high": 0.5}]
    spec = CurationSpec(source="x", pass_rates=str(tmp_path / "rates.jsonl"), steps=steps)
    return build_steps(spec, tmp_path)[0]


def test_pass_rates_of_other_rows_are_refused(tmp_path: Path) -> None:
    rows = [{"row": at, "id": str(at), "question": f"q{at}"} for at in (1, 2)]
    rates: list[Row] = [
        {"id": "1", "question": "q1", "pass_rate": 0.9},
        {"id": "2", "question": "q2", "pass_rate": 0.1},
    ]
    assert [decision.row is not None for decision in rated(tmp_path, rates).decide(rows)] == [False, True]
    with pytest.raises(DataCardError, match="another question under id '1' than row 1"):
        rated(tmp_path, [{**rates[0], "question": "q2"}, rates[1]]).decide(rows)
    with pytest.raises(DataCardError, match="no row has a pass rate; ids look like '1' here"):
        rated(tmp_path, [{**rates[0], "id": "set-1"}]).survey(lambda: iter(rows), tmp_path)
    with pytest.raises(DataCardError, match="the id '1' twice"):
        rated(tmp_path, [rates[0], {**rates[0], "pass_rate": 0.2}])


def test_a_curation_tells_each_step_as_it_ends(tmp_path: Path) -> None:
    write_rows(tmp_path / "rows.jsonl", [good(1), good(2)])
    told: list[StepReport] = []
    steps = [build_step({"step": name}) for name in ("exact_dedup", "structure_filter")]
    reports = curate(tmp_path / "rows.jsonl", steps, tmp_path / "out", progress=told.append)
    assert told == reports and [report.name for report in told] == ["read", "exact_dedup", "structure_filter"]


def test_a_label_step_can_keep_the_right_traces_alone(tmp_path: Path) -> None:
    rows: list[Row] = [good(1), good(2, traces=[{"text": "wrong"}])]
    for row in rows:
        for trace in row["traces"]:
            trace["claim"] = trace["text"].startswith("right")
    write_rows(tmp_path / "rows.jsonl", rows)
    step = build_step({"step": "label_traces", "label": "claim", "keep": "right"})
    _, report = curate(tmp_path / "rows.jsonl", [step], tmp_path / "out")
    assert [[trace["text"] for trace in row["traces"]] for row in curated_rows(tmp_path / "out")] == [["right 1"]]
    assert report.removed == {"not right": 2}
