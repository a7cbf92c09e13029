"""Several teachers as one, and how far to trust a teacher on a sample."""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from rlkd.errors import NumericsError
from rlkd.tensors.checks import as_float, require_axes, require_floating, require_floats


def mix_teachers(
    teacher_logits: Float[Tensor, "M *S V"],
    *,
    weights: Float[Tensor, " M"],
    mean: Literal["arithmetic", "geometric"] = "arithmetic",
) -> Float[Tensor, "*S V"]:
    """One teacher from several, over the same vocabulary: log of the weighted mean of their probabilities.

        arithmetic: log sum_m w_m p_m           geometric: log_softmax(sum_m w_m log p_m)

    Args:
        teacher_logits: [M, ..., V] logits or log-probabilities (buckets of a common support work too). No gradient.
        weights: [M] >= 0 with sum 1 (prior_weights).
        mean: "arithmetic" covers whatever any teacher does; "geometric" keeps what all agree on.

    Returns: [..., V] normalised log-probabilities: the teacher_logits of any divergence.
    Gradient: none; teachers are data.
    Raises: NumericsError when weights are negative or don't sum to 1, or shapes or dtypes don't fit.
    Source: MEAL V2 (2009.08453), arithmetic; logit averaging for geometric.
    Differs: MEAL's discriminator is left out.
    Tested: test_mix_teachers_by_hand, test_mixing_one_teacher_changes_nothing
    """
    require_floating(teacher_logits=teacher_logits, weights=weights)
    if weights.shape != teacher_logits.shape[:1]:
        raise NumericsError(
            f"weights is {list(weights.shape)} and teacher_logits {list(teacher_logits.shape)}; there must be one "
            "weight a teacher"
        )
    if not bool((weights >= 0).all()) or abs(float(weights.double().sum()) - 1) > 1e-5:
        raise NumericsError(f"weights are {weights.tolist()}, but must be >= 0 and sum to 1")
    if mean not in ("arithmetic", "geometric"):
        raise NumericsError(f"mean is '{mean}', but must be arithmetic or geometric")
    logprobs = as_float(teacher_logits).detach().log_softmax(-1)  # teachers are data, never trained
    share = weights.to(logprobs.dtype).reshape(-1, *[1] * (logprobs.ndim - 1))
    if mean == "arithmetic":
        return (share.log() + logprobs).logsumexp(0)
    # a teacher of weight 0 has no say, not even by a probability of 0
    return (share * logprobs).where(share > 0, 0.0).sum(0).log_softmax(-1)


def prior_weights(accuracies: Float[Tensor, " M"], *, temperature: float = 0.05) -> Float[Tensor, " M"]:
    """Teacher weights from their verified accuracies: softmax(accuracy / temperature).

    Args:
        accuracies: [M] in [0, 1], measured by a verifier on the domain at hand.
        temperature: > 0; 0.05 is the paper's 5 points of accuracy in percent.

    Returns: [M] float32 or better, sum 1.
    Raises: NumericsError when accuracies are not [M] in [0, 1], or the temperature isn't positive.
    Source: CV-DD committee voting (2501.07575), prior voter.
    Differs: accuracies as fractions.
    Tested: test_prior_weights
    """
    require_axes("M", accuracies=accuracies)
    require_floating(accuracies=accuracies)
    if not bool(((accuracies >= 0) & (accuracies <= 1)).all()):
        raise NumericsError(f"accuracies are {accuracies.tolist()}, but must be in [0, 1]")
    if not 0 < temperature < float("inf"):
        raise NumericsError(f"temperature is {temperature}, but must be positive and finite")
    return (as_float(accuracies) / temperature).softmax(0)


def trilateral_features(
    *,
    policy_probs: Float[Tensor, "B V"],
    teacher_probs: Float[Tensor, "B V"],
    target_probs: Float[Tensor, "B V"],
    teacher_mean_probs: Float[Tensor, "B V"],
) -> Float[Tensor, "B 6"]:
    """Squared lengths of the edges between policy, teacher, target and the teacher's mean output for that target.

        [ST, SG, TG, SM, TM, GM] with S policy, T teacher, G target, M teacher's class mean

    Args:
        policy_probs, teacher_probs: [B, V] of one position or sample. target_probs: [B, V], one-hot for a gold token.
        teacher_mean_probs: [B, V] the teacher's average output over samples with the same target.

    Returns: [B, 6] in [0, 2].
    Gradient: none; the geometry is an input of the weight, not a target.
    Raises: NumericsError when shapes or dtypes don't fit.
    Source: TGeo-KD (2312.15112) Eq 3-4.
    Differs: the edges alone, without the V-wide vectors, which a language model's vocabulary rules out.
    Tested: test_trilateral_features
    """
    require_floats(
        policy_probs=policy_probs,
        teacher_probs=teacher_probs,
        target_probs=target_probs,
        teacher_mean_probs=teacher_mean_probs,
    )
    # geometry only: no gradient may flow into the policy from here
    s, t, g, m = (as_float(p).detach() for p in (policy_probs, teacher_probs, target_probs, teacher_mean_probs))
    edges = ((s, t), (s, g), (t, g), (s, m), (t, m), (g, m))
    return torch.stack([(a - b).square().sum(-1) for a, b in edges], -1)


def trilateral_weights(
    features: Float[Tensor, "B F"],
    *,
    first_weight: Float[Tensor, "H F"],
    first_bias: Float[Tensor, " H"],
    second_weight: Float[Tensor, " H"],
    second_bias: Float[Tensor, ""],
) -> Float[Tensor, " B"]:
    """Each sample's weight on the teacher, from its geometry: a small network with a sigmoid at its end.

        a = sigmoid(second_weight . relu(first_weight features + first_bias) + second_bias)

    Args:
        features: [B, F] from trilateral_features (and any verifier signal appended to it).
        first_weight, first_bias, second_weight, second_bias: the network; trained on held-out cross-entropy after one
            step of the policy (bilevel), never on the training loss, which it could lower by trusting no one.

    Returns: [B] in (0, 1), for per_sample_mixture.
    Gradient: through the network's parameters.
    Raises: NumericsError when shapes or dtypes don't fit.
    Source: TGeo-KD (2312.15112) Eq 5.
    Differs: one hidden layer; how the bilevel problem is solved isn't stated in the paper.
    Tested: test_trilateral_weights, test_trilateral_weight_learns_to_distrust_a_wrong_teacher
    """
    require_axes("B F", features=features)
    require_axes("H F", first_weight=first_weight)
    network = (first_weight, first_bias, second_weight, second_bias)
    width = first_weight.shape[0]
    want = ((width, features.shape[1]), (width,), (width,), ())
    if any(tensor.shape != shape for tensor, shape in zip(network, want, strict=True)):
        raise NumericsError(
            f"first_weight, first_bias, second_weight and second_bias are {[list(t.shape) for t in network]}, but must "
            f"be {[list(shape) for shape in want]} for {features.shape[1]} features"
        )
    require_floating(
        features=features,
        first_weight=first_weight,
        first_bias=first_bias,
        second_weight=second_weight,
        second_bias=second_bias,
    )
    hidden = torch.relu(features @ first_weight.T + first_bias)
    return torch.sigmoid(hidden @ second_weight + second_bias)
