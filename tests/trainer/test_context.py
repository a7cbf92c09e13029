"""What the verifier is told about a rollout beside its text."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
from rollout_groups import group

from reward import load
from reward.math.verifier import MathVerifier
from reward.pool import VerifierPool
from reward.protocol import ROLLOUT_FIELDS, Verifier, rollout_reads
from reward.verdict import Verdict
from rlkd.data.reasoning_gym import load_reasoning_gym
from rlkd.errors import VerifierError
from rlkd.recipe.data import ReasoningGymData
from rlkd.records import PrivilegedPrompt, RolloutGroup
from rlkd.trainer.context import Run


def test_length_shaping_sees_the_token_counts() -> None:
    """DAPO's penalty at 10 to 20 tokens: none at 5, half at 15, all at 20; the outcome is untouched."""
    length = {"verifier": {"name": "length", "max_length": 20, "buffer": 10}}
    with VerifierPool({"name": "compose", "outcome": "math", "shaping": [length]}) as pool:
        run = SimpleNamespace(pool=pool, abstained=0)
        verdicts = Run.verify(run, [group("a", [5, 15, 20])])  # type: ignore[arg-type]
    assert [verdict.score for verdict in verdicts] == [1.0, 1.0, 1.0]
    assert [verdict.shaping["length"] for verdict in verdicts] == [0.0, -0.5, -1.0]
    assert run.abstained == 0


SECRET = "first add seven and eight then take away the six"
TERMS = [  # a verifier, what it reads of the rollout, and its penalty on ``caught`` below
    ({"name": "length", "max_length": 20, "buffer": 10}, {"completion_tokens", "turn_tokens"}, -0.6),  # 16 tokens
    ("repetition", {"completion_ids"}, 4 / 13 / 0.5 - 1),  # 4 new of 13 4-grams where half may repeat
    ("leak", {"privileged", "prompt"}, -0.2),  # one copied run, one named hint
    ({"name": "format", "think": "plan"}, {"prompt"}, -1.0),  # the prompt opens no block and nothing closes one
]


def caught() -> RolloutGroup:
    """A rollout at which each shaping term has something to find, if it is told what it reads."""
    plain = group("a", [16])
    privileged = PrivilegedPrompt("", (), privileged=f"Solution: {SECRET}.")
    text = f"As the hint says, {SECRET}. \\boxed{{1}}"
    rollout = replace(plain.rollouts[0], text=text, completion_ids=(1, 2, 3, 4) * 4)
    return RolloutGroup(replace(plain.prompt, privileged=privileged), (rollout,))


@pytest.mark.parametrize(("spec", "reads", "penalty"), TERMS)
def test_every_shaping_term_finds_what_it_reads(spec: Any, reads: set[str], penalty: float) -> None:
    with VerifierPool({"name": "compose", "outcome": "math", "shaping": [{"verifier": spec}]}) as pool:
        assert pool.reads == reads
        run = SimpleNamespace(pool=pool, abstained=0)
        verdict = Run.verify(run, [caught()])[0]  # type: ignore[arg-type]
    assert not verdict.abstained
    assert verdict.score == 1.0
    assert verdict.shaping == {load(spec).name: pytest.approx(penalty)}


def test_what_the_prompt_shows_is_no_leak() -> None:
    shown = caught()
    shown = RolloutGroup(replace(shown.prompt, text=f"Note that you {SECRET}."), shown.rollouts)
    with VerifierPool({"name": "compose", "outcome": "math", "shaping": [{"verifier": "leak"}]}) as pool:
        run = SimpleNamespace(pool=pool, abstained=0)
        verdict = Run.verify(run, [shown])[0]  # type: ignore[arg-type]
    assert verdict.shaping == {"leak": pytest.approx(-0.1)}  # the hint is still named


def told(verifier: Verifier) -> set[str]:
    """Fields of the rollout, beside those of the row, that are sent to a verifier."""
    seen: list[dict[str, Any]] = []

    def verify_batch(items: list[tuple[str, dict[str, Any]]], **_: bool) -> list[Verdict]:
        seen.extend(example for _, example in items)
        return [Verdict.right()]

    pool = SimpleNamespace(reads=rollout_reads(verifier), verify_batch=verify_batch)
    Run.verify(SimpleNamespace(pool=pool, abstained=0), [caught()])  # type: ignore[arg-type]
    assert {"id", "question", "answer"} <= seen[0].keys()
    return seen[0].keys() - {"id", "question", "answer"}


def judge(completion: str, example: dict[str, Any]) -> bool:  # noqa: ARG001
    return True


class Counting(MathVerifier):
    """A user's verifier that reads more than its base."""


def test_only_what_the_verifier_reads_is_sent() -> None:
    assert told(load("math")) == told(load("multiple_choice")) == set()
    assert told(load({"name": "length", "max_length": 20, "buffer": 10})) == {"completion_tokens", "turn_tokens"}
    shaped = {"name": "compose", "outcome": "math", "shaping": [{"verifier": "repetition"}, {"verifier": "format"}]}
    assert told(load(shaped)) == {"completion_ids", "prompt"}
    assert told(load({"name": "route", "field": "kind", "routes": {"a": "math"}, "default": "leak"})) == {
        "privileged",
        "prompt",
    }


def test_a_verifier_that_declares_nothing_is_told_everything() -> None:
    assert told(load("test_context:judge")) == told(Counting()) == ROLLOUT_FIELDS
    wrong = Counting()
    wrong.reads = frozenset({"tokens"})
    with pytest.raises(VerifierError, match=r"'math' reads tokens; accepted in `reads`: completion_ids"):
        rollout_reads(wrong)


@pytest.mark.parametrize("task", ["chain_sum", "leg_counting", "gsm_symbolic"])
def test_the_tasks_own_scorer_judges_their_rows(task: str) -> None:
    examples = load_reasoning_gym(ReasoningGymData(task=task, size=4, seed=1), where="x")
    items = [(f"The answer is \\boxed{{{example.answer}}}", example.for_verifier()) for example in examples]
    with VerifierPool("reasoning_gym") as pool:
        assert [verdict.score for verdict in pool.verify_batch(items)] == [1.0] * 4
        assert not any(verdict.abstained for verdict in pool.check_golds([told for _, told in items]))
