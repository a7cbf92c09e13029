"""Divergences between whole next-token distributions, position by position."""

from __future__ import annotations

import math
from typing import NamedTuple

from jaxtyping import Float
from torch import Tensor

from rlkd.divergences.summands import DIVERGENCES, Kind, resolve
from rlkd.errors import NumericsError
from rlkd.tensors.checks import as_float, require_floats
from rlkd.tensors.chunked import check_temperature


class DivergenceOutput(NamedTuple):
    """Divergence of each position in nats, and the teacher's mass on entries that the clip cut (no gradient)."""

    per_token: Float[Tensor, "*S"]
    clipped_share: Float[Tensor, "*S"]


def divergence(
    *,
    kind: Kind,
    policy_logits: Float[Tensor, "*S V"],
    teacher_logits: Float[Tensor, "*S V"],
    mixture_weight: float | None = None,
    clip: float = math.inf,
    temperature: float = 1.0,
) -> DivergenceOutput:
    """A named divergence of policy and teacher at each position, with OPSD's cap on every vocabulary entry.

        D = sum_v min(summand_v, clip)

    Args:
        kind: which divergence; see forward_kl, reverse_kl, jensen_shannon, skewed_*_kl, total_variation.
        policy_logits: [..., V] logits or log-probabilities. Gradient flows here.
        teacher_logits: [..., V] of the same entries. No gradient.
        mixture_weight: of jensen_shannon (beta) and the skewed divergences (alpha); None for the others.
        clip: > 0, nats; upper bound of one entry's summand (OPSD's tau), before the sum over the vocabulary.
        temperature: > 0; divides both sides' logits. The divergence is not rescaled by its square.

    Returns: DivergenceOutput. With a clip the sum may be negative: only upper values are capped.
    Gradient: through the policy. A clipped entry has slope 0, yet its logit still gets + p_v * (unclipped mass, for
        forward KL): the optimiser pushes that token DOWN. A bias of the method; watch clipped_share.
    Raises: NumericsError for shapes, dtypes, kinds, weights, clips or temperatures that don't fit, or V = 0. A logit of
        -inf is an entry without mass; a position where all are has no distribution: its divergence is NaN, and NaN
        stays NaN.
    Source: OPSD (2601.18734) v3 sec 3.2, per-entry clip; core divergences as their own functions say.
    Differs: the paper doesn't print tau; the published code that has one uses 0.05.
    Tested: test_clip_caps_entries_before_the_sum, test_clipped_entries_are_pushed_down,
        test_clipped_share_is_the_teachers_mass, test_teacher_equal_to_policy_is_zero,
        test_a_position_without_mass_stays_visible
    """
    kind_, weight, clip = resolve(kind, mixture_weight, clip)
    check_temperature(temperature)
    require_floats(policy_logits=policy_logits, teacher_logits=teacher_logits)
    if policy_logits.ndim == 0 or policy_logits.shape[-1] == 0:
        raise NumericsError("the vocabulary axis (last) is empty")
    ls = (as_float(policy_logits) / temperature).log_softmax(-1)
    lt = (as_float(teacher_logits).detach() / temperature).log_softmax(-1)  # the teacher is data, never trained
    summands = DIVERGENCES[kind_].summand(ls, lt, weight)
    share = (lt.exp() * (summands > clip)).sum(-1).detach()  # a statistic, never trained
    return DivergenceOutput(summands.clamp(max=clip).sum(-1), share)


def forward_kl(*, policy_logits: Float[Tensor, "*S V"], teacher_logits: Float[Tensor, "*S V"]) -> Float[Tensor, "*S"]:
    """KL(teacher || policy): the policy must cover whatever the teacher does.

        D = sum_v p_T(v) (log p_T(v) - log p(v))

    Args:
        policy_logits: [..., V] logits or log-probabilities. Gradient flows here.
        teacher_logits: [..., V]. No gradient.

    Returns: [...] nats, >= 0; inf where the policy gives 0 to a token of the teacher.
    Gradient: dD / dlogits = p - p_T: that of cross-entropy on the teacher's distribution.
    Raises: NumericsError for shapes or dtypes that don't fit.
    Source: Hinton et al. (1503.02531); GKD (2306.13649) Eq 3.
    Differs: no temperature-squared factor.
    Tested: test_divergence_values, test_teacher_swap_changes_the_gradient, test_forward_kl_gradient_is_cross_entropy
    """
    return divergence(kind="forward_kl", policy_logits=policy_logits, teacher_logits=teacher_logits).per_token


def reverse_kl(*, policy_logits: Float[Tensor, "*S V"], teacher_logits: Float[Tensor, "*S V"]) -> Float[Tensor, "*S"]:
    """KL(policy || teacher): the policy may only do what the teacher does.

        D = sum_v p(v) (log p(v) - log p_T(v))

    Args:
        policy_logits: [..., V] logits or log-probabilities. Gradient flows here.
        teacher_logits: [..., V]. No gradient.

    Returns: [...] nats, >= 0; inf where the teacher gives 0 to a token of the policy.
    Gradient: dD / dlogits = p (log p - log p_T - D). At a sampled prefix; earlier tokens get no credit for it.
    Raises: NumericsError for shapes or dtypes that don't fit.
    Source: MiniLLM (2306.08543) Eq 1; GKD (2306.13649) Eq 3.
    Differs: as published.
    Tested: test_divergence_values, test_teacher_swap_changes_the_gradient, test_k2_gradient_is_reverse_kl
    """
    return divergence(kind="reverse_kl", policy_logits=policy_logits, teacher_logits=teacher_logits).per_token


def jensen_shannon(
    *, policy_logits: Float[Tensor, "*S V"], teacher_logits: Float[Tensor, "*S V"], mixture_weight: float = 0.5
) -> Float[Tensor, "*S"]:
    """Generalised Jensen-Shannon divergence: bounded, so safe with a noisy teacher.

        D = b KL(p_T || m) + (1 - b) KL(p || m),    m = b p_T + (1 - b) p,    b = mixture_weight

    Args:
        policy_logits: [..., V] logits or log-probabilities. Gradient flows here.
        teacher_logits: [..., V]. No gradient.
        mixture_weight: in [0, 1] (the papers' beta). The formula is 0 at both ends, so there the divergence that it
            tends to in direction is returned: 0 gives forward KL, 1 gives reverse KL.

    Returns: [...] nats, in [0, ln 2] at 0.5; inside (0, 1) finite also where either side has probability 0.
    Gradient: through the policy, also inside the mixture.
    Raises: NumericsError for shapes, dtypes or weights that don't fit.
    Source: GKD (2306.13649) Eq 4; OPSD (2601.18734) Eq 7; SSLD (2103.05959) at 0.5.
    Differs: the ends are special-cased, as the papers' code does.
    Tested: test_divergence_values, test_jensen_shannon_limits, test_jensen_shannon_is_bounded
    """
    return divergence(
        kind="jensen_shannon",
        policy_logits=policy_logits,
        teacher_logits=teacher_logits,
        mixture_weight=mixture_weight,
    ).per_token


def skewed_forward_kl(
    *, policy_logits: Float[Tensor, "*S V"], teacher_logits: Float[Tensor, "*S V"], mixture_weight: float = 0.1
) -> Float[Tensor, "*S"]:
    """KL(teacher || mixture): forward KL that stays finite, at most -log(skew).

        D = KL(p_T || a p_T + (1 - a) p),    a = mixture_weight

    Args:
        policy_logits: [..., V] logits or log-probabilities. Gradient flows here.
        teacher_logits: [..., V]. No gradient.
        mixture_weight: in [0, 1), the papers' alpha; 0 is forward KL.

    Returns: [...] nats, in [0, -log a].
    Gradient: through the policy inside the mixture.
    Raises: NumericsError for shapes, dtypes or weights that don't fit.
    Source: DistiLLM (2402.03898) Eq 4 (skew KL).
    Differs: as published.
    Tested: test_divergence_values, test_skewed_limits
    """
    return divergence(
        kind="skewed_forward_kl",
        policy_logits=policy_logits,
        teacher_logits=teacher_logits,
        mixture_weight=mixture_weight,
    ).per_token


def skewed_reverse_kl(
    *, policy_logits: Float[Tensor, "*S V"], teacher_logits: Float[Tensor, "*S V"], mixture_weight: float = 0.1
) -> Float[Tensor, "*S"]:
    """KL(policy || mixture): reverse KL that stays finite, at most -log(skew).

        D = KL(p || a p + (1 - a) p_T),    a = mixture_weight

    Args:
        policy_logits: [..., V] logits or log-probabilities. Gradient flows here.
        teacher_logits: [..., V]. No gradient.
        mixture_weight: in [0, 1), the papers' alpha; 0 is reverse KL.

    Returns: [...] nats, in [0, -log a].
    Gradient: through the policy, also inside the mixture.
    Raises: NumericsError for shapes, dtypes or weights that don't fit.
    Source: DistiLLM (2402.03898) Eq 5 (skew reverse KL).
    Differs: as published.
    Tested: test_divergence_values, test_skewed_limits
    """
    return divergence(
        kind="skewed_reverse_kl",
        policy_logits=policy_logits,
        teacher_logits=teacher_logits,
        mixture_weight=mixture_weight,
    ).per_token


def total_variation(
    *, policy_logits: Float[Tensor, "*S V"], teacher_logits: Float[Tensor, "*S V"]
) -> Float[Tensor, "*S"]:
    """Total variation distance: the largest difference in probability of any set of tokens.

        D = sum_v |p(v) - p_T(v)| / 2

    Args:
        policy_logits: [..., V] logits or log-probabilities. Gradient flows here.
        teacher_logits: [..., V]. No gradient.

    Returns: [...] in [0, 1]; symmetric.
    Gradient: a subgradient: 0 at entries where both agree.
    Raises: NumericsError for shapes or dtypes that don't fit.
    Source: f-DISTILL (2307.15190).
    Differs: as published.
    Tested: test_divergence_values, test_teacher_equal_to_policy_is_zero
    """
    return divergence(kind="total_variation", policy_logits=policy_logits, teacher_logits=teacher_logits).per_token
