"""What the verifier is told about a rollout beside its text."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from rollout_groups import group

from reward.pool import VerifierPool
from rlkd.data.reasoning_gym import load_reasoning_gym
from rlkd.recipe.schema import ReasoningGymData
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


@pytest.mark.parametrize("name", ["length", "repetition", "leak", "format"])
def test_every_shaping_term_finds_what_it_reads(name: str) -> None:
    told = {"name": name, "max_length": 20, "buffer": 10} if name == "length" else name
    with VerifierPool({"name": "compose", "outcome": "math", "shaping": [{"verifier": told}]}) as pool:
        run = SimpleNamespace(pool=pool, abstained=0)
        verdict = Run.verify(run, [group("a", [5])])[0]  # type: ignore[arg-type]
    assert not verdict.abstained
    assert name in verdict.shaping


@pytest.mark.parametrize("task", ["chain_sum", "leg_counting", "gsm_symbolic"])
def test_the_tasks_own_scorer_judges_their_rows(task: str) -> None:
    examples = load_reasoning_gym(ReasoningGymData(task=task, size=4, seed=1), where="x")
    items = [(f"The answer is \\boxed{{{example.answer}}}", example.for_verifier()) for example in examples]
    with VerifierPool("reasoning_gym") as pool:
        assert [verdict.score for verdict in pool.verify_batch(items)] == [1.0] * 4
        assert not any(verdict.abstained for verdict in pool.check_golds([told for _, told in items]))
