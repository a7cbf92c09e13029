"""`rlkd data` end to end: real files in, files and exit codes out."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner, Result

from rlkd.data.cards import card_names
from rlkd.data.cli import app
from rlkd.data.curate import STEPS
from rlkd.data.curate.spec import CurationSpec
from rlkd.data.rows import good_rows, write_rows
from rlkd.errors import DataCardError


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(each) for each in arguments])


def test_cards_and_steps_are_listed() -> None:
    listed = run("cards").output
    assert all(name in listed for name in card_names()) and "103000" in listed
    steps = run("steps").output
    assert (
        "near_dedup" in steps and "settings: field=question, threshold=0.8, ngram=3, permutations=256, seed=42" in steps
    )
    assert "needs: pass_rates: FILE" in steps


def test_check_exits_with_one_only_for_faults(data_dir: Path) -> None:
    clean = run("check", "amc23", "--data-dir", data_dir, "--workers", 1)
    assert clean.exit_code == 0 and "nothing wrong" in clean.output
    faulty = run("check", "aime24", "--data-dir", data_dir, "--no-golds", "--json")
    report = json.loads(faulty.output)
    assert faulty.exit_code == 1 and not report["ok"]
    assert {(fault["row"], fault["kind"]) for fault in report["faults"]} == {
        (22, "figure needed"),
        (29, "figure needed"),
    }


def test_pairs_in_killable_verifier_processes(tmp_path: Path, data_dir: Path) -> None:
    """A slice of the real traces; the counts are those of the claims, which the verifier confirms."""
    rows = list(good_rows(data_dir / "gsm8k_example_model_solutions.jsonl"))[:60]
    write_rows(tmp_path / "gsm8k_example_model_solutions.jsonl", rows)
    command = ["pairs", "--card", "gsm8k-model-solutions", "--data-dir", tmp_path, "--out", tmp_path / "out"]
    result = run(*command, "--label", "both", "--workers", 1)
    assert result.exit_code == 0, result.exception
    claims = [[value["is_correct"] for value in row.values() if isinstance(value, dict)] for row in rows]
    both = sum(any(each) and not all(each) for each in claims)
    assert f"{both:,}  pairs written" in result.output
    assert len(list(good_rows(tmp_path / "out" / "pairs.jsonl"))) == both
    assert len(list(good_rows(tmp_path / "out" / "sft.jsonl"))) == sum(map(any, claims))


def test_conditions_mean_text_and_numbers(tmp_path: Path) -> None:
    traces = [{"text": "a", "claim": True}, {"text": "b", "claim": False}]
    levels = [5, "5", 5.0, 2, "Level 5", True]
    rows = [{"question": f"q{at}", "answer": "1", "level": level, "traces": traces} for at, level in enumerate(levels)]
    write_rows(tmp_path / "rows.jsonl", rows)
    command = ["pairs", "--source", tmp_path / "rows.jsonl", "--label", "claim", "--out", tmp_path / "out"]
    result = run(*command, "--drop", "level=5,true", "--drop", "question=[q9],q0")
    assert result.exit_code == 0, result.exception
    assert [row["level"] for row in good_rows(tmp_path / "out" / "pairs.jsonl")] == [2, "Level 5"]


def test_pairs_refuse_what_is_missing(tmp_path: Path) -> None:
    for arguments in (["--out", tmp_path], ["--out", tmp_path, "--source", tmp_path / "x.jsonl"]):
        assert isinstance(run("pairs", *arguments).exception, DataCardError)
    error = run("pairs", "--out", tmp_path, "--card", "gsm8k-model-solutions", "--keep", "source").exception
    assert isinstance(error, DataCardError) and "write field=value" in str(error)
    error = run("pairs", "--out", tmp_path, "--card", "gsm8k-model-solutions", "--label", "verified").exception
    assert isinstance(error, DataCardError) and "'verifier' or 'claim' (given: 'verified')" in str(error)


def test_curation_from_a_file(tmp_path: Path, data_dir: Path) -> None:
    """Every step without a model, over a real set, and pass rates from a file."""
    rates = [{"id": str(at), "pass_rate": at % 5 / 4} for at in range(2065)]
    write_rows(tmp_path / "rates.jsonl", rates)
    spec = {
        "card": "mawps",
        "data_dir": str(data_dir),
        "pass_rates": str(tmp_path / "rates.jsonl"),
        "steps": [
            {"step": "exact_dedup"},
            {"step": "pass_rate_filter", "low": 0.25, "high": 0.75},
            {"step": "decontaminate", "sets": ["gsm8k-test"]},
        ],
    }
    (tmp_path / "spec.yaml").write_text(yaml.safe_dump(spec))
    result = run("curate", tmp_path / "spec.yaml", "--out", tmp_path / "out")
    assert result.exit_code == 0, result.exception
    lines = result.output.splitlines()
    assert lines[0] == "read: rows 2065 -> 2065" and lines[1] == "exact_dedup: rows 2065 -> 1978 (exact duplicate 87)"
    kept = list(good_rows(next((tmp_path / "out").glob("02-*")) / "part-00000.jsonl"))
    assert {row["pass_rate"] for row in kept} == {0.25, 0.5, 0.75}
    again = run("curate", tmp_path / "spec.yaml", "--out", tmp_path / "out")
    assert again.output.count("[1 of 1 parts were done]") == 4
    write_rows(tmp_path / "rates.jsonl", [*rates, {"id": "of another policy", "pass_rate": 0.5}])
    error = run("curate", tmp_path / "spec.yaml", "--out", tmp_path / "out").exception
    assert isinstance(error, DataCardError) and "02-pass_rate_filter holds results of" in str(error)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({"steps": []}, "card or source"),
        (["a", "b"], "it holds no keys; write source: FILE"),
        ({"source": "x.jsonl", "steps": [], "teachr": "m"}, "teachr: unknown; did you mean 'teacher'?"),
        (
            {"source": "x.jsonl", "steps": ["exact_dedupe"]},
            "steps.0: unknown curation step 'exact_dedupe'; did you mean",
        ),
        ({"source": "x.jsonl", "steps": [{"near_dedup": {"threshold": 0.5}}]}, "write {step: near_dedup, ...}"),
        ({"source": "x.jsonl", "steps": [{"step": "decontaminate", "sets": "math500"}]}, "should be a valid list"),
        ({"source": "x.jsonl", "steps": [{"step": "decontaminate", "sets": ["math50"]}]}, "did you mean 'math500'"),
        ({"source": "x.jsonl", "steps": ["label_traces"]}, "a line of the curation, verifier: NAME"),
        (
            {"source": "x.jsonl", "steps": [{"step": "label_traces", "verifier": "math"}]},
            "a line of the curation, not of",
        ),
        (
            {"source": "x.jsonl", "steps": [{"step": "mixed_policy", "max_continuation": 9}]},
            "line of the curation: student",
        ),
        (
            {"source": "x.jsonl", "steps": ["exact_dedup"], "embedding": "perhaps"},
            "embedding: Input should be a valid bool",
        ),
        (
            {
                "source": "x.jsonl",
                "card": "mawps",
                "reading": {"question": "{q}", "answer": {"field": "a"}},
                "steps": [],
            },
            "the card",
        ),
        ({"source": "x.jsonl", "stps": []}, "stps"),
        ({"source": "x.jsonl", "steps": [{"step": "perplexity_filter", "max_perplexity": 3.0}]}, "teacher: MODEL"),
        ({"source": "x.jsonl", "steps": [], "pass_rates": "none.jsonl"}, "no such data file: none.jsonl"),
    ],
)
def test_a_wrong_curation_says_what_is_wrong(tmp_path: Path, spec: object, message: str) -> None:
    (tmp_path / "spec.yaml").write_text(yaml.safe_dump(spec))
    error = run("curate", tmp_path / "spec.yaml", "--out", tmp_path / "out").exception
    assert isinstance(error, DataCardError) and message in str(error)


def test_help_loads_nothing_heavy() -> None:
    """What makes `--help` slow is importing torch, transformers, datasets, matplotlib or numpy."""
    code = (
        "import sys, rlkd.data.cli, rlkd.analysis.cli;"
        "heavy = {'torch', 'transformers', 'datasets', 'matplotlib', 'numpy', 'pydantic', 'openai'} & set(sys.modules);"
        "sys.exit(f'imported {heavy}' if heavy else 0)"
    )
    started = time.monotonic()
    subprocess.run([sys.executable, "-c", code], check=True)
    assert time.monotonic() - started < 30


def test_the_readme_names_every_step_and_its_curation_runs(tmp_path: Path) -> None:
    readme = (Path(__file__).resolve().parents[2] / "rlkd/data/curate/README.md").read_text("utf-8")
    assert [name for name in STEPS if f"`{name}`" not in readme and f"step: {name}" not in readme] == []
    blocks = [yaml.safe_load(block) for block in re.findall(r"```yaml\n(.*?)```", readme, re.DOTALL)]
    assert set(blocks[0]) | set(blocks[1]) == set(CurationSpec.model_fields)
    (tmp_path / "traces").mkdir()
    for part, numbers in enumerate((range(8), range(8, 20))):
        rows = [
            {
                "problem": f"{'Count them. ' * at} What is {at} plus {at}?",
                "gold": 2 * at,
                "generations": [rf"It is \boxed{{{2 * at}}}.", rf"So \boxed{{{2 * at}}}", rf"\boxed{{{2 * at + 1}}}"],
            }
            for at in numbers
        ]
        write_rows(tmp_path / f"traces/{part}.jsonl", rows)
    spec = {**blocks[0], "source": str(tmp_path / "traces/*.jsonl")}
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(spec))
    result = run("curate", tmp_path / "mine.yaml", "--out", tmp_path / "out")
    assert result.exit_code == 0, result.exception
    train = list(good_rows(tmp_path / "out" / "train.jsonl"))
    assert result.output.splitlines()[0] == "read: rows 20 -> 20, traces 60"
    assert {row["solution"] for row in train} <= {f"It is \\boxed{{{2 * at}}}." for at in range(20)} | {
        f"So \\boxed{{{2 * at}}}" for at in range(20)
    }
    assert all(isinstance(row["answer"], str) and row["model"] == "r1" and row["right"] is True for row in train)
    assert "not right" in result.output and len(train) >= 20
