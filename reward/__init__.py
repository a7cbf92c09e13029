"""Verifiers: completion -> verdict. Usable by itself; imports neither torch nor rlkd's upper layers.

``load("math")`` judges in this process without limits; ``reward.pool.VerifierPool("math")`` judges in killable ones.
"""

from reward.protocol import Example, Verifier
from reward.registry import known, load
from reward.verdict import Reason, Verdict

__all__ = ["Example", "Reason", "Verdict", "Verifier", "known", "load"]
