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


def test_a_write_that_fails_leaves_the_old_file_and_no_other(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    write_rows(path, [GOOD])
    before = path.read_bytes()
    with pytest.raises(RuntimeError), atomic_open(path) as stream:
        stream.write("half")
        raise RuntimeError
    assert path.read_bytes() == before
    assert [each.name for each in tmp_path.iterdir()] == ["rows.jsonl"]
