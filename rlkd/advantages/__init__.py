"""Credit: how much better a rollout, or what follows a token, did than expected."""

from rlkd.advantages.credit import (
    add_shaping,
    groups_with_signal,
    reward_to_go,
    soft_overlong_penalty,
    to_tokens,
)
from rlkd.advantages.feedback import first_turn_advantages, turn_advantages
from rlkd.advantages.group import group_advantages

__all__ = [
    "add_shaping",
    "first_turn_advantages",
    "group_advantages",
    "groups_with_signal",
    "reward_to_go",
    "soft_overlong_penalty",
    "to_tokens",
    "turn_advantages",
]
