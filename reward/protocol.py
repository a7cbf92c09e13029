"""The one interface between a trainer and anything that judges a completion."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

from reward.verdict import Verdict

Example = Mapping[str, Any]


@runtime_checkable
class Verifier(Protocol):
    """Judges completions against one dataset row.

    Attributes:
        name: how recipes, metrics and alarms call it.
    """

    name: str

    def verify(self, completion: str, example: Example) -> Verdict:
        """Judge the generated text alone, without the prompt. ``example["answer"]`` is the gold."""
        ...

    def check_gold(self, example: Example) -> Verdict:
        """Whether this row can be judged at all: right, or abstained with reason ``bad_gold``. Run before training."""
        ...
