"""Pairs from the real traces of four models: counts at every filter are counted again by hand."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from reward import Verdict, load
from rlkd.data.cards import load_card
from rlkd.data.curate import build_step
from rlkd.data.curate.where import LabelTraces, WhereFilter
from rlkd.data.pairs import PairSettings, build_pairs
from rlkd.data.rows import Row, good_rows, write_rows
from rlkd.errors import DataCardError

CARD = load_card("gsm8k-model-solutions")


def verify(items: Sequence[tuple[str, Mapping[str, Any]]]) -> list[Verdict]:
    verifier = load("math")
    return [verifier.verify(text, example) for text, example in items]


def test_pairs_of_the_real_traces(data_dir: Path, tmp_path: Path, gsm8k_traces: list[Row]) -> None:
    report = build_pairs(CARD.path(data_dir), tmp_path, card=CARD, verify_batch=verify, label="both")
    right = [[t for t in row["traces"] if t["claim"]] for row in gsm8k_traces]
    wrong = [[t for t in row["traces"] if not t["claim"]] for row in gsm8k_traces]
    both = sum(bool(r) and bool(w) for r, w in zip(right, wrong, strict=True))
    assert dict(report.stages) == {
        "problems judged": 1319,
        "with a right trace: SFT rows": sum(map(bool, right)),
        "with a right and a wrong trace": both,
        "prompt within the limit": both,
        "right and wrong trace within the limit": both,
        "pairs written": both,
    }
    # the verifier and the publishers' own labels agree on all 5,276 traces
    assert report.traces == {"right": sum(map(len, right)), "wrong": sum(map(len, wrong))} and not report.disagreements
    pairs = {row["question"]: row for row in good_rows(tmp_path / "pairs.jsonl")}
    assert len(pairs) == both
    for row, rights, wrongs in zip(gsm8k_traces, right, wrong, strict=True):
        if rights and wrongs:
            pair = pairs[row["question"]]
            assert (pair["chosen"], pair["rejected"]) == (rights[0]["text"], wrongs[0]["text"])
    sft = list(good_rows(tmp_path / "sft.jsonl"))
    assert [row["completion"] for row in sft] == [each[0]["text"] for each in right if each]
    assert json.loads((tmp_path / "report.json").read_text())["label"] == "both"


def test_length_limits_drop_pairs_at_the_right_stage(data_dir: Path, tmp_path: Path, gsm8k_traces: list[Row]) -> None:
    settings = PairSettings(max_prompt=40, max_response=45)
    report = dict(
        build_pairs(
            CARD.path(data_dir), tmp_path, card=CARD, verify_batch=None, label="claim", settings=settings
        ).stages
    )

    def fits(traces: list[Row], claim: bool) -> bool:
        return any(t["claim"] is claim and len(t["text"].split()) <= 45 for t in traces)

    both = [row for row in gsm8k_traces if len({trace["claim"] for trace in row["traces"]}) == 2]
    short = [row for row in both if len(row["question"].split()) <= 40]
    kept = [row for row in short if fits(row["traces"], True) and fits(row["traces"], False)]
    assert 0 < len(kept) < len(short) < len(both)
    assert report["with a right and a wrong trace"] == len(both)
    assert report["prompt within the limit"] == len(short)
    assert report["right and wrong trace within the limit"] == report["pairs written"] == len(kept)


@pytest.mark.parametrize(
    ("score", "claim", "both", "verifier"),
    [
        (1.0, True, True, True),
        (1.0, False, False, True),  # either denial makes it wrong
        (0.0, True, False, False),
        (0.5, True, False, False),  # partly right is not right
        (None, True, None, None),  # an abstention is no wrong answer
        (None, False, False, None),
        (1.0, None, None, True),
    ],
)
def test_labels(score: float | None, claim: bool | None, both: bool | None, verifier: bool | None) -> None:
    verdict = Verdict.abstain("error") if score is None else Verdict.graded(score)
    row = {"id": "1", "row": 1, "question": "q", "traces": [{"text": "t", "claim": claim}]}
    for label, expected in (("both", both), ("verifier", verifier), ("claim", claim)):
        step = build_step({"step": "label_traces", "label": label}, verify_batch=lambda items: [verdict for _ in items])
        assert isinstance(step, LabelTraces)
        (decision,) = step.decide([row])
        assert decision.row is not None and decision.row["traces"][0]["right"] is expected


@pytest.mark.parametrize(("right", "wrong"), [(True, False), (1, 0), ("True", "False"), ("yes", "No")])
def test_claims_that_are_no_bools(tmp_path: Path, right: object, wrong: object) -> None:
    traces = [{"text": "a", "claim": wrong}, {"text": "b", "claim": right}, {"text": "c", "claim": None}]
    write_rows(tmp_path / "rows.jsonl", [{"question": "q", "answer": "1", "traces": traces}])
    report = build_pairs(tmp_path / "rows.jsonl", tmp_path / "out", card=None, verify_batch=None, label="claim")
    assert report.traces == {"right": 1, "wrong": 1, "neither": 1}
    (pair,) = good_rows(tmp_path / "out" / "pairs.jsonl")
    assert (pair["chosen"], pair["rejected"]) == ("b", "a")


def test_a_claim_counts_against_the_verifier_whatever_its_spelling(tmp_path: Path) -> None:
    traces = [{"text": "\\boxed{2}", "claim": "False"}, {"text": "\\boxed{1}", "claim": "False"}]
    write_rows(tmp_path / "rows.jsonl", [{"question": "q", "answer": "1", "traces": traces}])
    report = build_pairs(tmp_path / "rows.jsonl", tmp_path / "out", card=None, verify_batch=verify)
    assert report.disagreements == {"claim wrong, verifier right": 1}


def test_a_claim_that_says_nothing_is_named_with_its_row() -> None:
    row = {"id": "7", "row": 3, "question": "q", "traces": [{"text": "t", "claim": "perhaps"}]}
    with pytest.raises(DataCardError, match="row 3, claim of a trace: 'perhaps' says neither right nor wrong"):
        build_step({"step": "label_traces", "label": "claim"}).decide([row])


def test_rows_are_chosen_by_dotted_names() -> None:
    rows = [{"id": str(at), "row": at, "meta": {"source": name}} for at, name in enumerate(("cn_k12", "x"), start=1)]
    dropped = WhereFilter(drop={"meta.source": ("cn_k12",)}).decide(rows)
    kept = WhereFilter(keep={"meta.source": ("cn_k12",)}).decide(rows)
    assert [each.row for each in dropped] == [None, rows[1]]
    assert [each.row for each in kept] == [rows[0], None]
    assert dropped[0].removals[0].reason == "meta.source is cn_k12"


def test_redi_row_filters(tmp_path: Path) -> None:
    """REDI drops the source cn_k12 and rows that are not known to be valid."""
    traces = [{"text": "a", "claim": True}, {"text": "b", "claim": False}]
    cases = [("olympiads", "Yes"), ("cn_k12", "Yes"), ("olympiads", "No"), ("olympiads", None)]
    rows = [
        {"question": f"q{at}", "answer": "1", "source": source, "problem_is_valid": valid, "traces": traces}
        for at, (source, valid) in enumerate(cases)
    ]
    write_rows(tmp_path / "rows.jsonl", rows)
    step = WhereFilter(keep={"problem_is_valid": ("Yes",)}, drop={"source": ("cn_k12",)})
    build_pairs(tmp_path / "rows.jsonl", tmp_path / "out", card=None, verify_batch=None, label="claim", filters=[step])
    assert [row["question"] for row in good_rows(tmp_path / "out" / "pairs.jsonl")] == ["q0"]


def test_a_resume_with_another_verifier_is_refused(tmp_path: Path) -> None:
    write_rows(tmp_path / "rows.jsonl", [{"question": "q", "answer": "1", "traces": [{"text": "a", "claim": True}]}])
    run = {"card": None, "verify_batch": verify, "label": "claim"}
    build_pairs(tmp_path / "rows.jsonl", tmp_path / "out", verifier="math", **run)  # type: ignore[arg-type]
    with pytest.raises(DataCardError, match="other settings"):
        build_pairs(tmp_path / "rows.jsonl", tmp_path / "out", verifier="exact", **run)  # type: ignore[arg-type]
