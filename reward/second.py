"""Plain math-verify as a second opinion for audits and benchmarks. Never used for a reward."""

from __future__ import annotations

import logging

from reward.protocol import Example


def math_verify_says(completion: str, example: Example) -> bool | None:
    """math-verify's own parse and verify with its defaults; None (an abstention) where it does not judge."""
    from math_verify import parse, verify

    logging.getLogger("math_verify").setLevel(logging.CRITICAL + 1)  # it logs whole completions
    gold = example.get("answer")
    if gold is None or not isinstance(completion, str):
        return None
    text = str(gold).rpartition("####")[2].strip() or str(gold)
    wrapped = text if "$" in text or "\\boxed" in text else f"${text}$"
    return bool(verify(parse(wrapped), parse(completion)))
