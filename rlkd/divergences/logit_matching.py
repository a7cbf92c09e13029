"""Losses on logits rather than probabilities, over a support of few entries: standardised, listwise, dual-head."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from rlkd.errors import NumericsError
from rlkd.tensors.checks import (
    as_float,
    require_floating,
    require_floats,
    require_integers,
    require_mask,
    require_same_shape,
)


def standardise(
    logits: Float[Tensor, "*S K"], valid: Bool[Tensor, "*S K"] | None = None, *, std_floor: float = 1e-6
) -> Float[Tensor, "*S K"]:
    """Z-scores of the logits of a support: only their shape matters, neither shift nor scale.

        z_k = (logit_k - mean) / max(std, std_floor)        over the valid entries of the same support for both models

    Args:
        logits: [..., K] logits or log-probabilities of a support (2 to 1024 entries). Gradient flows here, also through
            mean and std.
        valid: entries that count (vocabulary padding and -inf must not: their mean would be NaN); default all.
        std_floor: > 0.

    Returns: [..., K]; -inf where not valid. Feed both models' to a divergence (temperature 2 in the paper).
    Gradient: through all valid logits.
    Raises: NumericsError for shapes, dtypes or a floor that don't fit, or more than 1024 entries: over a whole
        vocabulary a confident teacher becomes nearly uniform (p(top) of 0.999 falls to about 0.03). Use a support, or
        standardise_to_teacher.
    Source: Logit Standardization (2403.01427) Eq 11.
    Differs: on a support; the std is the population's as in the paper (released code: the sample's, which changes the
        temperature by a constant), floored instead of summed with 1e-7.
    Tested: test_standardise_is_shift_and_scale_free, test_whole_vocabulary_is_refused
    """
    if logits.shape[-1] > 1024:
        raise NumericsError(
            f"{logits.shape[-1]} entries: z-scores over a whole vocabulary flatten a confident teacher; take a support "
            "(top_support) or standardise_to_teacher"
        )
    centred, spread, valid = _centred(logits, valid, std_floor)
    return (centred / spread).where(valid, -torch.inf)


def standardise_to_teacher(
    policy_logits: Float[Tensor, "*S K"],
    teacher_logits: Float[Tensor, "*S K"],
    valid: Bool[Tensor, "*S K"] | None = None,
    *,
    std_floor: float = 1e-6,
) -> Float[Tensor, "*S K"]:
    """The policy's logits with the teacher's mean and spread: safe over any vocabulary, at temperature 1.

        z_k = (policy_k - mean_policy) / std_policy * std_teacher + mean_teacher

    Args:
        policy_logits: [..., K]. Gradient flows here, also through its mean and std.
        teacher_logits: [..., K] of the same entries. No gradient.
        valid: entries that count (vocabulary padding must not); default all.
        std_floor: > 0.

    Returns: [..., K]; -inf where not valid. The teacher's own logits are left as they are.
    Gradient: through the policy only.
    Raises: NumericsError when shapes, dtypes or the floor don't fit.
    Source: ours, after Logit Standardization (2403.01427).
    Tested: test_standardise_to_teacher_takes_its_moments, test_standardise_is_shift_and_scale_free
    """
    require_floats(policy_logits=policy_logits, teacher_logits=teacher_logits)
    centred, spread, valid = _centred(policy_logits, valid, std_floor)
    teacher = as_float(teacher_logits).detach()  # the teacher is data, never trained
    teacher_spread = _centred(teacher, valid, std_floor)[1]
    mean = teacher.where(valid, 0.0).sum(-1, keepdim=True) / valid.sum(-1, keepdim=True).clamp(min=1)
    return (centred / spread * teacher_spread + mean).where(valid, -torch.inf)


def plackett_luce(
    *,
    policy_logits: Float[Tensor, "*S K"],
    teacher_logits: Float[Tensor, "*S K"],
    first: Int[Tensor, "*S"] | None = None,
    policy_rest: Float[Tensor, "*S"] | None = None,
    temperature: float = 1.0,
) -> Float[Tensor, "*S"]:
    """Listwise loss: choose the entries in the teacher's order, each step weighted by the teacher's confidence.

        order: pi_1 = first (or the teacher's best), then by falling teacher logit;  q = softmax(teacher / temperature)
        loss = sum_k q[pi_k] (logsumexp_{j >= k} policy[pi_j] - policy[pi_k])

    Args:
        policy_logits: [..., K] of a support. Gradient flows here.
        teacher_logits: [..., K] of the same entries. No gradient.
        first: [...] index into K of the entry put first (the gold token), or None for the teacher's order. On the
            policy's own rollouts leave it None.
        policy_rest: [...] log-mass (in the units of policy_logits) of everything outside the support; it stays in every
            denominator, so that the support as a whole is ranked above the rest. None: the support is everything.
        temperature: > 0, of the teacher's weights only.

    Returns: [...] nats, >= 0. All weight on the first entry gives cross-entropy; convex in the policy's logits.
    Gradient: through the policy only; invariant to a shift of its logits.
    Raises: NumericsError when shapes, dtypes or the temperature don't fit, or an index leaves the support. An entry
        that the teacher rules out (-inf) weighs nothing, whatever the policy gives it.
    Source: PLD (2506.12542) Eq 8; on a support with the rest in the denominators: ours.
    Differs: support and rest; with None and K = V, as published.
    Tested: test_plackett_luce_by_hand, test_plackett_luce_limits, test_plackett_luce_rest,
        test_plackett_luce_of_impossible_entries
    """
    require_floats(policy_logits=policy_logits, teacher_logits=teacher_logits)
    if not 0 < temperature < float("inf"):
        raise NumericsError(f"temperature is {temperature}, but must be positive and finite")
    teacher = as_float(teacher_logits).detach()  # the teacher is data, never trained
    rank_by = teacher
    if first is not None:
        _check_first(first, policy_logits)
        rank_by = teacher.scatter(-1, first[..., None], torch.inf)
    order = rank_by.argsort(dim=-1, descending=True, stable=True)
    weights = (teacher / temperature).softmax(-1).gather(-1, order)
    ranked = as_float(policy_logits).gather(-1, order)
    # bounded: the log-sum of nothing but -inf has a NaN gradient
    remaining = ranked.clamp(min=torch.finfo(ranked.dtype).min).flip(-1).logcumsumexp(-1).flip(-1)
    if policy_rest is not None:
        require_floats(policy_rest=policy_rest, position=policy_logits[..., 0])
        remaining = torch.logaddexp(remaining, as_float(policy_rest)[..., None])
    return (weights * (remaining - ranked).where(weights > 0, 0.0)).sum(-1)


def _check_first(first: Tensor, logits: Tensor) -> None:
    require_integers(first=first)
    require_same_shape(first=first, position=logits[..., 0])
    if first.numel() and not 0 <= int(first.min()) <= int(first.max()) < logits.shape[-1]:
        raise NumericsError(
            f"first spans {int(first.min())} to {int(first.max())}, but must index the support: [0, {logits.shape[-1]})"
        )


def log_cosh_matching(
    *,
    auxiliary_logits: Float[Tensor, "*S K"],
    teacher_logits: Float[Tensor, "*S K"],
    valid: Bool[Tensor, "*S K"] | None = None,
    temperature: float = 2.0,
) -> Float[Tensor, "*S"]:
    """Match centred logits of an auxiliary head to the teacher's: quadratic when near, linear when far (dual-head KD).

        loss = T^2 mean_k log cosh(d_k / (2 T)),    d_k = (auxiliary_k - mean) - (teacher_k - mean)

    Args:
        auxiliary_logits: [..., K] of a second head on the same backbone, over a support. Gradient flows here.
        teacher_logits: [..., K] of the same entries. No gradient.
        valid: entries that count; default all.
        temperature: > 0.

    Returns: [...] >= 0.
    Gradient: (T / 2) tanh(d_k / (2 T)) / K, centred: bounded, whatever the logits.
    Raises: NumericsError when shapes, dtypes or the temperature don't fit.
    Source: Dual-Head KD (2411.08937): its sum of binary KL(1/2 || sigmoid(d / T)) is exactly log cosh(d / (2 T)).
    Differs: logits centred (language models leave a free shift), mean over the support instead of a sum over classes.
    Tested: test_log_cosh_is_the_papers_binary_kl, test_log_cosh_is_shift_free
    """
    require_floats(auxiliary_logits=auxiliary_logits, teacher_logits=teacher_logits)
    if not 0 < temperature < float("inf"):
        raise NumericsError(f"temperature is {temperature}, but must be positive and finite")
    ours, _, valid = _centred(auxiliary_logits, valid, 1.0)
    theirs, _, _ = _centred(as_float(teacher_logits).detach(), valid, 1.0)  # the teacher is data, never trained
    half = (ours - theirs).where(valid, 0.0).abs() / (2 * temperature)
    # log cosh x = x + log1p(exp(-2 x)) - log 2, which cannot overflow
    values = half + torch.log1p((-2 * half).exp()) - torch.log(torch.tensor(2.0, dtype=half.dtype))
    return temperature**2 * values.where(valid, 0.0).sum(-1) / valid.sum(-1).clamp(min=1)


def aligned_gradient(*, auxiliary: Float[Tensor, " N"], main: Float[Tensor, " N"]) -> Float[Tensor, " N"]:
    """The auxiliary loss's gradient without what opposes the main one (projection, only when they conflict).

        g2 - min(<g2, g1>, 0) / ||g1||^2 * g1

    Returns: [N] float32 or better. Where the main gradient is zero, nothing is taken away.
    Raises: NumericsError when shapes or dtypes don't fit.
    Source: Dual-Head KD (2411.08937), gradient alignment.
    Differs: as published.
    Tested: test_aligned_gradient
    """
    require_floats(auxiliary=auxiliary, main=main)
    auxiliary, main = as_float(auxiliary), as_float(main)
    overlap = (auxiliary * main).sum().clamp(max=0.0)
    return auxiliary - overlap / main.square().sum().clamp(min=torch.finfo(main.dtype).tiny) * main


def _centred(logits: Tensor, valid: Tensor | None, std_floor: float) -> tuple[Tensor, Tensor, Tensor]:
    """Values minus their mean (0 where not valid), floored population std, mask."""
    if not 0 < std_floor < float("inf"):
        raise NumericsError(f"std_floor is {std_floor}, but must be positive and finite")
    require_floating(logits=logits)
    values = as_float(logits)
    valid = torch.ones_like(values, dtype=torch.bool) if valid is None else valid
    require_mask(valid, values, "valid", "logits")
    count = valid.sum(-1, keepdim=True).clamp(min=1)
    values = values.where(valid, 0.0)
    centred = (values - values.sum(-1, keepdim=True) / count).where(valid, 0.0)
    # the floor goes inside the root: at 0 the root has no gradient
    spread = (centred.square().sum(-1, keepdim=True) / count).clamp(min=std_floor**2).sqrt()
    return centred, spread, valid
