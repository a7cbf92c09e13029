"""Credit: how much better a rollout, or what follows a token, did than expected."""

from rlkd.advantages.group import group_advantages

__all__ = ["group_advantages"]
