"""How far the policy's next-token distribution is from the teacher's. KL directions are in the names."""

from rlkd.divergences.chunked import chunked_divergence
from rlkd.divergences.summands import DIVERGENCES, Kind
from rlkd.divergences.support import (
    Support,
    bucketed,
    chunked_bucketed,
    chunked_top_support,
    complete,
    top_support,
    union_support,
)
from rlkd.divergences.vocabulary import (
    DivergenceOutput,
    divergence,
    forward_kl,
    jensen_shannon,
    reverse_kl,
    skewed_forward_kl,
    skewed_reverse_kl,
    total_variation,
)

__all__ = [
    "DIVERGENCES",
    "DivergenceOutput",
    "Kind",
    "Support",
    "bucketed",
    "chunked_bucketed",
    "chunked_divergence",
    "chunked_top_support",
    "complete",
    "divergence",
    "forward_kl",
    "jensen_shannon",
    "reverse_kl",
    "skewed_forward_kl",
    "skewed_reverse_kl",
    "top_support",
    "total_variation",
    "union_support",
]
