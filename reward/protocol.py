"""The one interface between a trainer and anything that judges a completion."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

from reward.verdict import Verdict
from rlkd.errors import VerifierError

Example = Mapping[str, Any]

# What a trainer adds to the row for each completion. Token ids are long: a verifier may declare what it reads.
ROLLOUT_FIELDS = frozenset({"prompt", "privileged", "completion_ids", "completion_tokens", "turn_tokens"})


@runtime_checkable
class Verifier(Protocol):
    """Judges completions against one dataset row.

    Attributes:
        name: how recipes, metrics and alarms call it.
        reads: optional; those of ROLLOUT_FIELDS that it reads. Without it every field is sent.
    """

    name: str

    def verify(self, completion: str, example: Example) -> Verdict:
        """Judge the generated text alone, without the prompt. ``example["answer"]`` is the gold."""
        ...

    def check_gold(self, example: Example) -> Verdict:
        """Whether this row can be judged at all: right, or abstained with reason ``bad_gold``. Run before training."""
        ...


def rollout_reads(verifier: Verifier) -> frozenset[str]:
    """Which of ROLLOUT_FIELDS have to be sent. What a base class declares doesn't count: its subclass may read more.

    Raises: VerifierError when it declares a field that there isn't.
    """
    own = {**vars(type(verifier)), **getattr(verifier, "__dict__", {})}
    reads = frozenset(own.get("reads", ROLLOUT_FIELDS))
    if reads - ROLLOUT_FIELDS:
        raise VerifierError(
            f"verifier '{verifier.name}' reads {', '.join(sorted(reads - ROLLOUT_FIELDS))}; accepted in `reads`: "
            f"{', '.join(sorted(ROLLOUT_FIELDS))} (what stands in the row itself is always sent)"
        )
    return reads
