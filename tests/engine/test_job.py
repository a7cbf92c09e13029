"""The whole job: its run folder is the contract, a killed run ends where an undisturbed one does."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from job import SMALL, SMALL_SFT, difference, printed, run, run_and_kill, steps_logged

from rlkd.data.cards import cards_folder

pytestmark = pytest.mark.engine
OVERRIDES = [*SMALL, *SMALL_SFT]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "undisturbed"
    run(out, OVERRIDES)
    return out


def test_the_run_folder_keeps_its_contract(undisturbed: Path) -> None:
    summary = json.loads((undisturbed / "summary.json").read_text())
    assert (summary["name"], summary["status"], summary["steps"]) == ("kdrl", "finished", 5)
    assert set(summary["eval"]) == {"before", "after", "per_stage"}
    assert set(summary["eval"]["per_stage"]) == {"sft", "sft-teacher", "kdrl"}
    assert summary["eval"]["before"] == summary["eval"]["per_stage"]["sft"]
    assert summary["eval"]["after"] == summary["eval"]["per_stage"]["kdrl"]
    assert {"pass@1", "n", "ci95"} <= summary["eval"]["after"].keys()
    assert summary["tokens"]["generated"] > 0
    assert 0 < summary["gap"]["mean"] <= summary["gap"]["max"] < 1e-4
    recipe = json.loads((undisturbed / "recipe.json").read_text())
    assert recipe["stages"][2]["steps"] == 5
    manifest = json.loads((undisturbed / "manifest.json").read_text())
    assert {"packages", "commit", "hardware", "seed", "command"} <= manifest.keys()
    assert {"torch", "ray", "deepspeed", "transformers"} <= manifest["packages"].keys()
    lines = [json.loads(line) for line in (undisturbed / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 5]
    wanted = {"reward", "pass_rate", "kl_to_teacher", "entropy", "rollout_policy_logprob_gap/mean", "tokens_per_s"}
    assert wanted | {"lr", "grad_norm"} <= lines[0].keys()
    assert [line["policy_version"] for line in lines] == [1, 2, 3, 4, 5]


def test_kept_rollouts_carry_every_log_prob(undisturbed: Path) -> None:
    assert sorted(p.name for p in (undisturbed / "rollouts" / "kdrl").iterdir()) == [
        f"step-{step:06d}.jsonl" for step in (1, 2, 4)
    ]
    for line in (undisturbed / "rollouts" / "kdrl" / "step-000002.jsonl").read_text().splitlines():
        row = json.loads(line)
        count = len(row["token_ids"])
        for name in ("tokens", "rollout_logprobs", "teacher_logprobs", "policy_logprobs"):
            assert len(row[name]) == count, name
        assert row["policy_logprobs"] == pytest.approx(row["rollout_logprobs"], abs=1e-4)
        assert row["min_version"] == row["max_version"] == 1


def test_the_final_policy_is_an_ordinary_model(undisturbed: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(undisturbed / "policy")
    model = AutoModelForCausalLM.from_pretrained(undisturbed / "policy")
    turn = [{"role": "user", "content": "1 + 1 ="}]
    ids = tokenizer.apply_chat_template(turn, add_generation_prompt=True, return_tensors="pt")
    written = model.generate(**ids, max_new_tokens=4, do_sample=False)
    assert written.shape[1] > ids["input_ids"].shape[1]


def test_a_run_killed_twice_ends_where_an_undisturbed_one_does(undisturbed: Path, tmp_path: Path) -> None:
    """After a checkpoint of the teacher's SFT, and between two of the loop; its every step: test_early_stop.py."""
    out = tmp_path / "killed"
    for moment in (
        lambda: any(out.glob("stages/1-sft-teacher/*.tmp/step-2")),
        lambda: steps_logged(out) >= 3,
    ):
        run_and_kill(out, OVERRIDES, moment)
        assert not (out / "summary.json").exists()
    assert "sft-teacher: goes on after update" in printed(out)
    losses = (out / "stages" / "1-sft-teacher" / "progress.txt").read_text().splitlines()
    assert [line.split()[0] for line in losses] == [str(step) for step in range(1, 13)], "each update is told once"
    assert "continuing" in run(out, OVERRIDES)
    assert difference(undisturbed, out) == 0.0
    metrics = [(p / "metrics.jsonl").read_text().splitlines() for p in (undisturbed, out)]
    timing = ("_s", "per_s", "_gib/max")  # what no two runs share
    for one, other in zip(*metrics, strict=True):
        left, right = ({k: v for k, v in json.loads(line).items() if not k.endswith(timing)} for line in (one, other))
        assert left == right


def test_eval_measures_each_problem_of_a_card(undisturbed: Path, tmp_path: Path) -> None:
    sums = [(3, 4), (10, 2), (7, 7), (1, 8), (20, 5)]
    rows = [{"question": f"{a} + {b} =", "answer": str(a + b)} for a, b in sums]
    (tmp_path / "sums.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    card = yaml.safe_load((cards_folder() / "svamp.yaml").read_text(encoding="utf-8"))
    card |= {"name": "sums", "prompt_template": "{question}", "reading": {"question": "{question}"}}
    card["reading"]["answer"] = {"field": "answer"}
    card["source"]["file"] = "sums.jsonl"
    (tmp_path / "sums.yaml").write_text(yaml.safe_dump(card))
    command = [sys.executable, "-m", "rlkd", "eval", str(undisturbed / "policy"), str(tmp_path / "sums.yaml")]
    command += ["--samples", "2", "--temperature", "1", "--max-new-tokens", "8", "--out", str(tmp_path / "out")]
    environment = os.environ | {"RLKD_DATA_DIR": str(tmp_path)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    figures = json.loads((tmp_path / "out" / "summary.json").read_text())["eval"]
    problems = [json.loads(line) for line in (tmp_path / "out" / "problems.jsonl").read_text().splitlines()]
    assert (figures["n"], figures["samples"]) == (5, 2)
    assert [(row["id"], row["question"]) for row in problems] == [
        (str(number), row["question"]) for number, row in enumerate(rows, start=1)
    ]
    assert figures["pass@1"] == pytest.approx(sum(row["pass_rate"] for row in problems) / 5)
    assert not (tmp_path / "out" / "stages").exists()  # the parts are for a call that was killed
