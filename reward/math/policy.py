"""The choices on which reasonable graders differ, each with a name. tests/reward/cases/math_policy.jsonl shows them."""

from __future__ import annotations

from dataclasses import dataclass, fields

from rlkd.errors import VerifierError, did_you_mean


@dataclass(frozen=True, slots=True)
class Policy:
    """Every switch accepts more when on. Off in both presets, for good: rounding, translation, hedged values."""

    prose: bool  # without box, tag or "the answer is": the value of the last plain statement counts
    bare_percent: bool  # gold 28%: 28 counts, as 0.28 always does (gold 9: 9% never does)
    angle_units: bool  # gold 90 degrees: pi/2 counts, and the other way round
    inequality_as_interval: bool  # gold (0, 12.5): 0 < x < 12.5 counts
    list_as_tuple: bool  # gold 0,1: (0,1) counts when in the same order, and the other way round
    gold_precision: bool  # gold 0.29: 0.29024353 counts (three or more further digits that round to the gold)
    leading_word: bool  # gold Yes: "Yes, because n is even" counts
    yes_is_true: bool  # gold True: Yes counts
    bare_base_digits: bool  # gold 52_8: 52 counts (42 never does)
    parts_in_boxes: bool  # gold 3, 5: one box a part, in order, counts
    leading_approx: bool  # gold 3.14: "\approx 3.14" counts
    decimal_comma: bool  # gold 3.5: 3,5 counts in an answer whose language writes it so
    free_constant: bool  # gold x + C: the constant of integration may have another name


def _preset(value: bool) -> Policy:
    return Policy(**{field.name: value for field in fields(Policy)})


POLICIES = {"strict": _preset(False), "lenient": _preset(True)}


def policy_of(name: str) -> Policy:
    try:
        return POLICIES[name]
    except KeyError:
        raise VerifierError(
            f"math policy '{name}'{did_you_mean(name, POLICIES)}; accepted: {', '.join(POLICIES)}"
        ) from None
