"""pi-Distill and its OPSD: one network with and without privileged information teaches itself, with a reward."""

from __future__ import annotations

from jaxtyping import Bool, Float
from torch import Tensor

from rlkd.errors import NumericsError
from rlkd.objectives.policy_gradient import clipped_surrogate
from rlkd.tensors.checks import as_float, require_axes, require_floating, require_floats, require_mask, require_rows


def pi_distill(
    *,
    privileged_logprobs: Float[Tensor, "B T"],
    bare_logprobs: Float[Tensor, "B T"],
    rollout_logprobs: Float[Tensor, "B T"],
    advantages: Float[Tensor, "B T"],
    teacher_share: float,
    clip_low: float = 0.2,
    clip_high: float = 0.2,
) -> Float[Tensor, "B T"]:
    """Train the privileged view and the bare view of one network on rollouts of the privileged view.

        loss_t = a S(privileged_t) + (1 - a) S(bare_t),   S(p) = clipped_surrogate(p, rollout, A),   a = teacher_share

    Args:
        privileged_logprobs: [B, T] nats, log p(token | prompt with privileged information). Gradient flows here.
        bare_logprobs: [B, T] nats, log p(token | prompt alone), of the same tokens. Gradient flows here.
        rollout_logprobs: [B, T] nats, of the same tokens as sampled, WITH privileged information. No gradient.
        advantages: [B, T] of return minus KL penalty (penalised_scores), centred by group, not divided by std.
        teacher_share: in [0, 1], the paper's alpha; 1 trains the teacher term only, 0 the student term only.
        clip_low, clip_high: distances from 1.

    Returns: [B, T] loss to minimise; reduce with kind "token" over the group.
    Gradient: through both views of the same weights; the student's ratio is bare / rollout, so its denominator stays
        the distribution that sampled. Per-token ratios: unbiased for one token, a surrogate for longer sequences.
    Raises: NumericsError when shapes, dtypes, the share or a clip don't fit.
    Source: pi-Distill (2602.04942) Eq 2-4, Alg 1, App E.1.
    Differs: released code divides the student's ratio by the CURRENT teacher, which no longer is the sampling
        distribution after the first of several updates.
    Tested: test_pi_distill_terms, test_pi_distill_student_term_is_unbiased_for_one_token
    """
    require_floats(
        privileged_logprobs=privileged_logprobs, bare_logprobs=bare_logprobs, rollout_logprobs=rollout_logprobs
    )
    if not 0 <= teacher_share <= 1:
        raise NumericsError(f"teacher_share is {teacher_share}, but must be in [0, 1]")

    def surrogate(logprobs: Tensor) -> Tensor:
        return clipped_surrogate(
            policy_logprobs=logprobs,
            rollout_logprobs=rollout_logprobs,
            advantages=advantages,
            clip_low=clip_low,
            clip_high=clip_high,
        )

    return teacher_share * surrogate(privileged_logprobs) + (1 - teacher_share) * surrogate(bare_logprobs)


def penalised_scores(
    *,
    scores: Float[Tensor, " B"],
    divergence: Float[Tensor, "B T"],
    response_mask: Bool[Tensor, "B T"],
    distill_coef: float,
) -> Float[Tensor, " B"]:
    """Score minus the rollout's summed divergence: the KL placed in the reward, before centring.

        R'_i = R_i - distill_coef * sum_t divergence_{i,t}

    Args:
        scores: [B] environment return.
        divergence: [B, T] nats per token: sampled log-ratio (k1_value), or the exact KL at each prefix. No gradient.
        response_mask: [B, T] trained tokens.
        distill_coef: >= 0, the paper's beta.

    Returns: [B] float32 or better.
    Gradient: none. Used as credit, the sampled log-ratio gives the exact gradient of sequence KL(sampler || other); the
        exact per-prefix KL misses the gradient of the KL at the token's own prefix: add it as a loss too, or accept
        the bias. With the KL here, pi-Distill's student term has no KL gradient of its own (its Eq 3 asks for one).
    Raises: NumericsError when shapes, dtypes or the coefficient don't fit.
    Source: pi-Distill (2602.04942) Alg 1-2, App E.1 (where OPSD back-propagates instead: the paper contradicts itself).
    Differs: as published in Alg 1-2; the other choice is ``reverse_kl`` or ``reverse_kl_k2`` as a loss.
    Tested: test_penalty_in_the_reward_is_sequence_kl, test_exact_kl_in_the_reward_misses_the_local_term
    """
    require_floating(divergence=divergence, scores=scores)
    require_axes("B T", divergence=divergence)
    require_mask(response_mask, divergence, "response_mask", "divergence")
    require_rows(scores, divergence, "scores", "divergence")
    if not 0 <= distill_coef < float("inf"):
        raise NumericsError(f"distill_coef is {distill_coef}, but must be >= 0 and finite")
    penalty = as_float(divergence).detach().where(response_mask, 0.0).sum(1)  # credit is data, never trained
    return as_float(scores) - distill_coef * penalty
