"""Per-token losses to minimise, pure and composable.

Every function takes [B, T] tensors of equal shape and returns a [B, T] loss (position t speaks about token t); nothing
here knows masks, except where a whole sequence is one quantity. Pass the inputs through ``rlkd.tensors.select`` first:
then nothing in a masked slot, NaN included, can reach the loss or its gradient. ``reduce`` turns the result into a
scalar with a global denominator.
"""

from rlkd.objectives.estimators import (
    ESTIMATORS,
    Estimator,
    forward_kl_k3,
    k1_value,
    loss_estimator,
    reverse_kl_k2,
)
from rlkd.objectives.feedback import rltf_self_distillation
from rlkd.objectives.importance import masked_importance_weight, truncated_importance_weight
from rlkd.objectives.kdrl import additive_advantage, distill_mask, kdrl_joint
from rlkd.objectives.policy_gradient import cispo, clipped_surrogate, gspo, log_ratio, reinforce
from rlkd.objectives.preference import dpo, redi, sequence_logprobs, simpo
from rlkd.objectives.privileged import penalised_scores, pi_distill
from rlkd.objectives.reduction import Reduction, local_denominator, reduce
from rlkd.objectives.schedules import anneal, constant, hard_switch, linear
from rlkd.objectives.staleness import decoupled_surrogate, fresh_enough
from rlkd.objectives.supervised import (
    cross_entropy,
    ground_truth_weight,
    mixed_source_weights,
    per_sample_mixture,
)

__all__ = [
    "ESTIMATORS",
    "Estimator",
    "Reduction",
    "additive_advantage",
    "anneal",
    "cispo",
    "clipped_surrogate",
    "constant",
    "cross_entropy",
    "decoupled_surrogate",
    "distill_mask",
    "dpo",
    "forward_kl_k3",
    "fresh_enough",
    "ground_truth_weight",
    "gspo",
    "hard_switch",
    "k1_value",
    "kdrl_joint",
    "linear",
    "local_denominator",
    "log_ratio",
    "loss_estimator",
    "masked_importance_weight",
    "mixed_source_weights",
    "penalised_scores",
    "per_sample_mixture",
    "pi_distill",
    "redi",
    "reduce",
    "reinforce",
    "reverse_kl_k2",
    "rltf_self_distillation",
    "sequence_logprobs",
    "simpo",
    "truncated_importance_weight",
]
