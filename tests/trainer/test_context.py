"""What the verifier is told about a rollout beside its text."""

from __future__ import annotations

from types import SimpleNamespace

from rollout_groups import group

from reward.pool import VerifierPool
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
