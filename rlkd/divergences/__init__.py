"""How far the policy's next-token distribution is from the teacher's. KL directions are in the names."""

from rlkd.divergences.chunked import chunked_divergence
from rlkd.divergences.cross_tokenizer import (
    Chunk,
    align_chunks,
    alm,
    boundary_logmass,
    byte_spans,
    chunk_logprobs,
    gradient_magnitude_weights,
    merge_uncertain,
)
from rlkd.divergences.logit_matching import (
    aligned_gradient,
    log_cosh_matching,
    plackett_luce,
    standardise,
    standardise_to_teacher,
)
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
from rlkd.divergences.teachers import mix_teachers, prior_weights, trilateral_features, trilateral_weights
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
    "Chunk",
    "DivergenceOutput",
    "Kind",
    "Support",
    "align_chunks",
    "aligned_gradient",
    "alm",
    "boundary_logmass",
    "bucketed",
    "byte_spans",
    "chunk_logprobs",
    "chunked_bucketed",
    "chunked_divergence",
    "chunked_top_support",
    "complete",
    "divergence",
    "forward_kl",
    "gradient_magnitude_weights",
    "jensen_shannon",
    "log_cosh_matching",
    "merge_uncertain",
    "mix_teachers",
    "plackett_luce",
    "prior_weights",
    "reverse_kl",
    "skewed_forward_kl",
    "skewed_reverse_kl",
    "standardise",
    "standardise_to_teacher",
    "top_support",
    "total_variation",
    "trilateral_features",
    "trilateral_weights",
    "union_support",
]
