"""Reading: bad rows are named, good rows are never lost. Writing: whole or not at all."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from rlkd.data.rows import BadRow, atomic_open, good_rows, read_rows, write_rows
from rlkd.errors import DataCardError

GOOD = {"question": "How many are 2 + 3? Π≈3", "answer": "5"}


def test_bad_rows_are_named_and_good_ones_kept(tmp_path: Path) -> None:
    good = json.dumps(GOOD, ensure_ascii=False).encode()
    lines = {
        1: good,
        2: good[: len(good) // 2],  # cut off
        3: b'{"question": "caf\xe9", "answer": "1"}',  # Latin-1 in a UTF-8 file
        4: b"[1, 2]",
        5: b"",  # a blank line is no row, but it counts as a line
        6: b'{"question": "\\ud83d", "answer": "1"}',  # half an emoji
        7: b"[" * 100_000,  # nesting that overflows a parser
        8: good,
    }
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b"\n".join(lines.values()) + b"\n")
    found = dict(read_rows(path))
    assert {number for number, row in found.items() if isinstance(row, BadRow)} == {2, 3, 4, 6, 7}
    assert found[1] == found[8] == GOOD
    reasons = {number: row.reason for number, row in found.items() if isinstance(row, BadRow)}
    assert "JSON" in reasons[2] and "UTF-8" in reasons[3] and "list" in reasons[4] and "surrogate" in reasons[6]
    assert "3" in str(found[3])


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_byte_order_marks(tmp_path: Path, encoding: str) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(GOOD, ensure_ascii=False) + "\n" for _ in range(3)), encoding=encoding)
    assert list(good_rows(path)) == [GOOD] * 3


def test_formats(tmp_path: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    with gzip.open(tmp_path / "a.jsonl.gz", "wt", encoding="utf-8") as stream:
        stream.write(json.dumps(GOOD) + "\n")
    (tmp_path / "b.json").write_text(json.dumps([GOOD, 3]))
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist([GOOD]), tmp_path / "c.parquet")
    assert list(good_rows(tmp_path / "a.jsonl.gz")) == [GOOD]
    assert list(good_rows(tmp_path / "c.parquet")) == [GOOD]
    (tmp_path / "e.csv").write_text('q,a\r\n"1, 2?",3\r\nlost\r\nx,y\r\n', encoding="utf-8-sig")
    assert list(good_rows(tmp_path / "e.csv")) == [{"q": "1, 2?", "a": "3"}, {"q": "x", "a": "y"}]
    assert isinstance(dict(read_rows(tmp_path / "e.csv"))[2], BadRow)
    rows = dict(read_rows(tmp_path / "b.json"))
    assert rows[1] == GOOD and isinstance(rows[2], BadRow)
    (tmp_path / "d.txt").write_text("x")
    with pytest.raises(DataCardError, match="known endings"):
        list(read_rows(tmp_path / "d.txt"))
    with pytest.raises(DataCardError, match="no such data file"):
        list(read_rows(tmp_path / "none.jsonl"))


def test_a_long_csv_field_and_a_byte_that_does_not_decode_cost_no_other_row(tmp_path: Path) -> None:
    path, trace = tmp_path / "rows.csv", "word " * 40_000
    path.write_bytes(b"q,a\n1,x\n2,%s\ncaf\xe9,x\n3,y\n" % trace.encode())
    found = dict(read_rows(path))
    bad = found.pop(3)
    assert isinstance(bad, BadRow) and "UTF-8" in bad.reason
    assert list(found.values()) == [{"q": "1", "a": "x"}, {"q": "2", "a": trace}, {"q": "3", "a": "y"}]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16"])
def test_a_line_separator_inside_a_text_ends_no_row(tmp_path: Path, encoding: str) -> None:
    rows = [{"q": "a\u2028b\x85c"}, {"q": "d"}]
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    (tmp_path / "rows.jsonl").write_bytes(text.encode(encoding))
    assert list(good_rows(tmp_path / "rows.jsonl")) == rows


def test_a_json_file_may_hold_json_lines(tmp_path: Path) -> None:
    path = tmp_path / "rows.json"
    path.write_text('{"q": "a"}\n{"q": "b"\n{"q": "c"}\n')
    found = dict(read_rows(path))
    assert found[1] == {"q": "a"} and isinstance(found[2], BadRow) and found[3] == {"q": "c"}
    path.write_text('{\n "q": "a"\n}\n')
    with pytest.raises(DataCardError, match="holds a dict"):
        list(read_rows(path))


def test_a_write_that_fails_leaves_the_old_file_and_no_other(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    write_rows(path, [GOOD])
    before = path.read_bytes()
    with pytest.raises(RuntimeError), atomic_open(path) as stream:
        stream.write("half")
        raise RuntimeError
    assert path.read_bytes() == before
    assert [each.name for each in tmp_path.iterdir()] == ["rows.jsonl"]
