"""What one vocabulary entry adds to a divergence, and how fast that grows with the policy's log-probability.

    D(position) = sum_v summand(ls_v, lt_v),    slope_v = d summand_v / d ls_v

ls and lt are normalised log-probabilities of policy and teacher. Every divergence here is such a sum, so its gradient
through softmax is  dD / dlogit_v = slope_v - p_v * sum_u slope_u  for all of them: the chunked form needs no more.
An entry with probability 0 adds its limit, 0, wherever that limit is finite.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from rlkd.errors import NumericsError, did_you_mean

Kind = Literal[
    "forward_kl", "reverse_kl", "jensen_shannon", "skewed_forward_kl", "skewed_reverse_kl", "total_variation"
]
Entrywise = Callable[[Tensor, Tensor, float], Tensor]


class Divergence(NamedTuple):
    """A divergence by its entries. ``mixes`` says whether it takes a mixture weight."""

    summand: Entrywise
    slope: Entrywise
    mixes: bool


def weigh(log_weight: Tensor, values: Tensor) -> Tensor:
    """exp(log_weight) * values, 0 where the weight is 0 whatever the value, in the gradient too."""
    return log_weight.exp() * values.where(log_weight > -torch.inf, 0.0)


def mixture(log_a: Tensor, log_b: Tensor, weight_a: float) -> Tensor:
    """log(weight_a * exp(log_a) + (1 - weight_a) * exp(log_b)) for 0 < weight_a < 1; -inf where both are 0."""
    nothing = torch.maximum(log_a, log_b) == -torch.inf  # logaddexp has no gradient there
    log_a, log_b = log_a.masked_fill(nothing, 0.0), log_b.masked_fill(nothing, 0.0)
    mixed = torch.logaddexp(log_a + math.log(weight_a), log_b + math.log1p(-weight_a))
    return mixed.masked_fill(nothing, -torch.inf)


def _forward(ls: Tensor, lt: Tensor, _: float) -> Tensor:
    return weigh(lt, lt - ls)


def _forward_slope(_ls: Tensor, lt: Tensor, _: float) -> Tensor:
    return -lt.exp()


def _reverse(ls: Tensor, lt: Tensor, _: float) -> Tensor:
    return weigh(ls, ls - lt)


def _reverse_slope(ls: Tensor, lt: Tensor, _: float) -> Tensor:
    return weigh(ls, ls - lt + 1)


def _jensen_shannon(ls: Tensor, lt: Tensor, beta: float) -> Tensor:
    lm = mixture(lt, ls, beta)
    return beta * weigh(lt, lt - lm) + (1 - beta) * weigh(ls, ls - lm)


def _jensen_shannon_slope(ls: Tensor, lt: Tensor, beta: float) -> Tensor:
    return (1 - beta) * weigh(ls, ls - mixture(lt, ls, beta))


def _skewed_forward(ls: Tensor, lt: Tensor, skew: float) -> Tensor:
    return weigh(lt, lt - mixture(lt, ls, skew))


def _skewed_forward_slope(ls: Tensor, lt: Tensor, skew: float) -> Tensor:
    return -(1 - skew) * weigh(lt, (ls - mixture(lt, ls, skew)).exp())


def _skewed_reverse(ls: Tensor, lt: Tensor, skew: float) -> Tensor:
    return weigh(ls, ls - mixture(ls, lt, skew))


def _skewed_reverse_slope(ls: Tensor, lt: Tensor, skew: float) -> Tensor:
    log_share = ls - mixture(ls, lt, skew)
    return weigh(ls, log_share + 1 - skew * log_share.exp())


def _total_variation(ls: Tensor, lt: Tensor, _: float) -> Tensor:
    return (ls.exp() - lt.exp()).abs() / 2


def _total_variation_slope(ls: Tensor, lt: Tensor, _: float) -> Tensor:
    return (ls.exp() - lt.exp()).sign() * ls.exp() / 2


DIVERGENCES: dict[str, Divergence] = {
    "forward_kl": Divergence(_forward, _forward_slope, mixes=False),
    "reverse_kl": Divergence(_reverse, _reverse_slope, mixes=False),
    "jensen_shannon": Divergence(_jensen_shannon, _jensen_shannon_slope, mixes=True),
    "skewed_forward_kl": Divergence(_skewed_forward, _skewed_forward_slope, mixes=True),
    "skewed_reverse_kl": Divergence(_skewed_reverse, _skewed_reverse_slope, mixes=True),
    "total_variation": Divergence(_total_variation, _total_variation_slope, mixes=False),
}
# Where a mixture weight degenerates: the divergence that stands there (Jensen-Shannon's own limit would be 0).
LIMITS: dict[tuple[str, float], str] = {
    ("jensen_shannon", 0.0): "forward_kl",
    ("jensen_shannon", 1.0): "reverse_kl",
    ("skewed_forward_kl", 0.0): "forward_kl",
    ("skewed_reverse_kl", 0.0): "reverse_kl",
}


def resolve(kind: str, mixture_weight: float | None, clip: float) -> tuple[str, float, float]:
    """The divergence to compute (limits special-cased), its mixture weight and clip.

    Raises: NumericsError for an unknown kind, a weight that is missing, out of place or out of range, or a bad clip.
    """
    if kind not in DIVERGENCES:
        raise NumericsError(
            f"unknown divergence '{kind}'{did_you_mean(kind, DIVERGENCES)}; known: {', '.join(sorted(DIVERGENCES))}"
        )
    if not clip > 0:
        raise NumericsError(f"clip is {clip}, but must be positive (math.inf: no clip)")
    if DIVERGENCES[kind].mixes != (mixture_weight is not None):
        raise NumericsError(f"mixture_weight is {mixture_weight} with '{kind}'; give it with a mixing divergence only")
    weight = 0.0 if mixture_weight is None else mixture_weight
    upper_included = kind == "jensen_shannon"
    if not (0 <= weight < 1 or (weight == 1 and upper_included)):
        raise NumericsError(f"mixture_weight is {weight}, but '{kind}' takes [0, 1{']' if upper_included else ')'}")
    return LIMITS.get((kind, weight), kind), weight, clip
