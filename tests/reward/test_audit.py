"""The audit: right counts, ids, kinds, golds of a dataset, a second opinion, and safe reading of cases."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest

from rlkd.audit import audit_cases, audit_verifier, print_report, read_cases
from rlkd.errors import VerifierError

ROWS: list[dict[str, Any]] = [
    {"id": "a", "kind": "x", "gold": "5", "completion": "\\boxed{5}", "expected": True, "confidence": "firm"},
    {"id": "b", "kind": "x", "gold": "5", "completion": "\\boxed{6}", "expected": True, "confidence": "firm"},
    {"id": "c", "kind": "x", "gold": "5", "completion": "\\boxed{5}", "expected": False, "confidence": "firm"},
    {"id": "d", "kind": "y", "gold": None, "completion": "\\boxed{5}", "expected": False, "confidence": "firm"},
    {"id": "e", "kind": "y", "gold": "5", "completion": "\\boxed{6}", "expected": True, "confidence": "policy"},
    {"id": "f", "kind": "multiple_choice", "gold": "B", "completion": "So (B).", "expected": True},
]


def test_counts_and_ids() -> None:
    report = audit_cases("math", ROWS, workers=1)
    assert report.kinds["x"].false_negatives == ["b"]
    assert report.kinds["x"].false_positives == ["c"]
    assert report.kinds["y"].abstained == ["d"]
    assert report.kinds["y"].policy_differs == ["e"]
    assert report.kinds["y"].right == 1  # an abstention where no reward was expected
    assert report.kinds["multiple_choice"].right == 1
    assert sorted(report.wrong) == ["b", "c"]
    assert report.to_json()["totals"] == {
        "false_positives": 1, "false_negatives": 1, "abstained": 1, "timed_out": 0, "policy_differs": 1,
    }  # fmt: skip


def test_a_verifier_of_ones_own_judges_every_kind() -> None:
    report = audit_cases("verifiers_for_tests:always", ROWS, workers=1)
    assert report.kinds["multiple_choice"].right == 1
    assert report.kinds["x"].false_positives == ["c"]
    assert report.second_checker == ""


def test_time_outs_are_listed() -> None:
    rows = [{"id": "t", "kind": "slow", "gold": "", "completion": "spin 30", "expected": False}]
    report = audit_cases("verifiers_for_tests:by_command", rows, workers=1, time_limit_s=0.5)
    assert report.kinds["slow"].timed_out == ["t"]


def test_second_checker_disagrees_where_math_verify_errs() -> None:
    """A public fault: everything below a millionth is equal to it."""
    rows = [{"id": "s", "kind": "p", "gold": "0.0000001", "completion": "\\boxed{0.0000002}", "expected": False}]
    report = audit_cases("math", rows, workers=1)
    assert report.wrong == []
    assert report.disagreements == ["s"]


def test_rows_without_a_completion_are_golds_to_check() -> None:
    report = audit_cases("math", [{"id": 1, "answer": "\\frac12"}, {"id": 2, "answer": "proof"}], workers=1)
    assert report.kinds["gold"].right == 1
    assert report.kinds["gold"].abstained == ["2"]


def test_medical_golds(shared: Path) -> None:
    rows = read_cases(shared / "data" / "medqa_test.jsonl")[:200]
    assert audit_cases("multiple_choice", rows, workers=1).kinds["gold"].right == 200


def test_printed_both_ways() -> None:
    report = audit_cases("math", ROWS, workers=1)
    table, blob = io.StringIO(), io.StringIO()
    print_report(report, stream=table)
    print_report(report, as_json=True, stream=blob)
    assert "wrongly accepted: c" in table.getvalue()
    assert "abstained: d" in table.getvalue()
    parsed = json.loads(blob.getvalue())
    assert parsed["wrong"] == ["c", "b"]
    assert parsed["kinds"]["x"]["cases"] == 3


def test_from_a_file_in_one_call(tmp_path: Path) -> None:
    path, printed = tmp_path / "cases.jsonl", io.StringIO()
    path.write_text("\n".join(json.dumps(row) for row in ROWS))
    report = audit_verifier("math", path, as_json=True, stream=printed)
    assert json.loads(printed.getvalue())["cases"] == len(ROWS) == report.cases


def write(folder: Path, **row: Any) -> Path:
    path = folder / "cases.jsonl"
    path.write_text(json.dumps(row) + "\n\n")
    return path


def test_generated_inputs_are_expanded(tmp_path: Path) -> None:
    row = read_cases(write(tmp_path, completion_gen="'a' * 3 + ','.join(map(str, range(3)))", gold_gen="float('nan')"))[
        0
    ]
    assert row["completion"] == "aaa0,1,2"
    assert row["gold"] != row["gold"]


def test_generators_loop_and_format(tmp_path: Path) -> None:
    row = read_cases(write(tmp_path, completion_gen="3 * chr(97) + ','.join(f'{i}^{2**i}' for i in range(3))"))[0]
    assert row["completion"] == "aaa0^1,1^2,2^4"
    row = read_cases(write(tmp_path, completion_gen="str(10**60 * 10**70 // 10**129) + '%d%%' % (17 % 7)"))[0]
    assert row["completion"] == "103%"
    row = read_cases(write(tmp_path, completion_gen="''.join('%s' % i for i in reversed(range(3)))"))[0]
    assert row["completion"] == "210"


def test_rows_may_hold_any_unicode_line_end(tmp_path: Path) -> None:
    path = tmp_path / "cases.jsonl"
    path.write_text('{"completion": "a\u2028b"}\n{"completion": "c\x85"}\n', encoding="utf-8")
    assert [row["completion"] for row in read_cases(path)] == ["a\u2028b", "c\x85"]


@pytest.mark.parametrize(
    "expression",
    [
        "__import__('os').getpid()",
        "open('x')",
        "'a' * 10**9",
        "(",
        "[x for x in y]",
        "[str(x) for x in range(10**8)]",
        "'%99999999d' % 1",
    ],
)
def test_generators_are_no_programs(tmp_path: Path, expression: str) -> None:
    with pytest.raises(VerifierError, match="line 1"):
        read_cases(write(tmp_path, completion_gen=expression))


def test_broken_file_names_the_line(tmp_path: Path) -> None:
    path = tmp_path / "broken.jsonl"
    path.write_text('{"id": 1}\n{oops\n')
    with pytest.raises(VerifierError, match="line 2"):
        read_cases(path)
