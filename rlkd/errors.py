"""The exception tree. A message says where, what was given, what is accepted and what to write."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class RlkdError(Exception):
    """Base of every error that rlkd raises on purpose."""


class RecipeError(RlkdError):
    """A recipe, or an override of it, that cannot be run as written."""


class DataCardError(RlkdError):
    """A data card, or the data behind it, that does not hold what it says."""


class VerifierError(RlkdError):
    """A verifier that cannot be found, built or trusted. (A failed verdict is an abstention, not an exception.)"""


class ClusterError(RlkdError):
    """A worker that did not start, died, or made no progress within its deadline."""


class RolloutError(RlkdError):
    """A rollout engine that broke its contract."""


class TeacherError(RlkdError):
    """A teacher that cannot score the policy's tokens, or scores something else than it claims."""


class CheckpointError(RlkdError):
    """A run folder or checkpoint that is incomplete, in use, or belongs to another job."""


class NumericsError(RlkdError, ValueError):
    """Values, shapes or masks for which the mathematics is not defined."""


class CollapseError(RlkdError):
    """An offline stage in which right and wrong traces lost their probability together."""


class MissingExtraError(RlkdError, ImportError):
    """An optional dependency that a feature needs is not installed."""


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return ``; did you mean 'x'?`` for the nearest known name, or an empty string."""
    near = difflib.get_close_matches(name, list(known), n=1, cutoff=0.6)
    return f"; did you mean '{near[0]}'?" if near else ""
