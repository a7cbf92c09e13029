"""A good call of every public function of the maths packages, and what each of its settings must refuse."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from rlkd import advantages, divergences, objectives, tensors
from rlkd.divergences import Chunk, Support
from rlkd.tensors import TeacherHead

B, T, V, D, C, K = 3, 4, 7, 5, 6, 2  # no two alike where they could be confused
FLOAT = torch.float64


def draw(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=FLOAT)


def logprobs(seed: int, *shape: int) -> Tensor:
    return -draw(seed, *shape).abs() - 0.1


MASK = torch.arange(T) < torch.tensor([4, 2, 3])[:, None]
SPANS = [(0, 2), (2, 5), (5, 6)]
GROUPS = torch.tensor([4, 4, 4])
SCORES = torch.tensor([1.0, 0.0, 0.5], dtype=FLOAT)
TURNS: dict[str, Any] = {
    "first_scores": SCORES,
    "second_scores": SCORES.flip(0),
    "group_ids": GROUPS,
    "has_second_turn": torch.tensor([True, True, False]),
}
SUPPORT = Support(torch.tensor([[0, 3], [1, 2], [6, 5]]), torch.ones(B, K, dtype=torch.bool))
SAMPLED: dict[str, Any] = {"policy_logprobs": logprobs(0, B, T), "rollout_logprobs": logprobs(1, B, T)}
TAUGHT: dict[str, Any] = {"policy_logprobs": logprobs(0, B, T), "teacher_logprobs": logprobs(1, B, T)}
CREDIT: dict[str, Any] = {"advantages": draw(2, B, T)}
MASKED: dict[str, Any] = {"response_mask": MASK}
CLIP: dict[str, Any] = {"clip_low": 0.2, "clip_high": 0.28}
LOGITS: dict[str, Any] = {"policy_logits": draw(0, B, V), "teacher_logits": draw(1, B, V)}
HEAD: dict[str, Any] = {"hidden": draw(0, B, D), "head_weight": draw(1, V, D), "head_bias": draw(2, V)}
TEACHER: dict[str, Any] = {
    "teacher_hidden": draw(3, B, D),
    "teacher_head_weight": draw(4, V, D),
    "teacher_head_bias": draw(5, V),
}
KEEP: dict[str, Any] = {"keep": torch.tensor([True, False, True])}


def row_kl(policy: Tensor, teacher: Tensor, scale: Tensor) -> Tensor:
    return scale * divergences.forward_kl(policy_logits=policy, teacher_logits=teacher)


GOOD: dict[str, dict[str, Any]] = {
    # tensors
    "as_float": {"values": draw(0, B)},
    "require_mask": {"mask": MASK, "values": draw(0, B, T)},
    "require_same_shape": {"first": draw(0, B), "second": draw(1, B)},
    "select": {"values": draw(0, B, T), "mask": MASK, "fill": 0.0},
    "masked_sum": {"values": draw(0, B, T), "mask": MASK},
    "masked_mean": {"values": draw(0, B, T), "mask": MASK, "denominator": 5.0},
    "chunked_logprobs": HEAD | {"targets": torch.tensor([6, 0, 2]), "temperature": 1.0, "chunk_size": 2},
    "chunked_rows": {
        **HEAD,
        "function": row_kl,
        "teachers": [TeacherHead(*TEACHER.values())],
        "extras": [draw(6, B)],
        "temperature": 1.0,
        "chunk_size": 2,
    },
    # divergences
    "divergence": LOGITS | {"kind": "jensen_shannon", "mixture_weight": 0.5, "clip": 1.0, "temperature": 1.0},
    "forward_kl": LOGITS,
    "reverse_kl": LOGITS,
    "total_variation": LOGITS,
    "jensen_shannon": LOGITS | {"mixture_weight": 0.5},
    "skewed_forward_kl": LOGITS | {"mixture_weight": 0.1},
    "skewed_reverse_kl": LOGITS | {"mixture_weight": 0.1},
    "chunked_divergence": {
        **HEAD,
        **TEACHER,
        "kind": "jensen_shannon",
        "vocabulary_size": V,
        "mixture_weight": 0.5,
        "clip": math.inf,
        "temperature": 1.0,
        "weighed_alike": torch.arange(B) != 1,
        "chunk_size": 2,
    },
    "top_support": {"logits": draw(0, B, V), "k": K},
    "union_support": {"first": SUPPORT, "second": Support(SUPPORT.ids.flip(0), SUPPORT.valid)},
    "bucketed": {"logits": draw(0, B, V), "support": SUPPORT},
    "complete": {"logprobs": logprobs(0, B, K) - 1, "valid": SUPPORT.valid, "tail_floor": 1e-7},
    "chunked_bucketed": HEAD | {"support": SUPPORT, "temperature": 1.0, "chunk_size": 2},
    "chunked_top_support": HEAD | {"k": K, "chunk_size": 2},
    "standardise": {"logits": draw(0, B, V), "valid": draw(0, B, V) > -9, "std_floor": 1e-6},
    "standardise_to_teacher": LOGITS | {"valid": draw(0, B, V) > -9, "std_floor": 1e-6},
    "plackett_luce": LOGITS | {"first": torch.tensor([0, 6, 2]), "policy_rest": draw(2, B), "temperature": 1.0},
    "log_cosh_matching": {
        "auxiliary_logits": draw(0, B, V),
        "teacher_logits": draw(1, B, V),
        "valid": draw(0, B, V) > -9,
        "temperature": 2.0,
    },
    "aligned_gradient": {"auxiliary": draw(0, C), "main": draw(1, C)},
    "mix_teachers": {
        "teacher_logits": draw(0, 2, B, V),
        "weights": torch.tensor([0.25, 0.75], dtype=FLOAT),
        "mean": "arithmetic",
    },
    "prior_weights": {"accuracies": torch.tensor([0.5, 0.75]), "temperature": 0.05},
    "trilateral_features": {
        name: draw(i, B, V).softmax(-1)
        for i, name in enumerate(("policy_probs", "teacher_probs", "target_probs", "teacher_mean_probs"))
    },
    "trilateral_weights": {
        "features": draw(0, B, C),
        "first_weight": draw(1, D, C),
        "first_bias": draw(2, D),
        "second_weight": draw(3, D),
        "second_bias": draw(4),
    },
    "byte_spans": {"byte_lengths": [2, 3, 1], "start": 0},
    "align_chunks": {"teacher_spans": SPANS, "policy_spans": SPANS},
    "chunk_logprobs": {"logprobs": logprobs(0, T), "ranges": [(0, 1), (1, 4)]},
    "alm": {
        "policy_chunks": logprobs(0, C),
        "teacher_chunks": logprobs(1, C),
        "policy_boundary": logprobs(2, C),
        "teacher_boundary": logprobs(3, C),
        "temperature": 5.0,
        "divergence": "kl",
    },
    "boundary_logmass": {"next_logits": draw(0, C, V), "starts_pretoken": torch.arange(V) % 2 == 0},
    "merge_uncertain": {
        "chunks": [Chunk(span, span) for span in SPANS],
        "teacher_boundary": logprobs(0, len(SPANS)),
        "threshold": 0.1,
    },
    "gradient_magnitude_weights": {"norms": draw(0, C).abs() + 0.1},
    # advantages
    "to_tokens": {"advantages": draw(0, B), "response_mask": MASK},
    "reward_to_go": {"rewards": draw(0, B, T), "response_mask": MASK, "discount": 0.5},
    "soft_overlong_penalty": {"lengths": torch.tensor([1, 9, 5]), "max_length": 9, "buffer": 4, "factor": 1.0},
    "add_shaping": {"advantages": draw(0, B), "shaping": draw(1, B), "valid": torch.ones(B, dtype=torch.bool)},
    "groups_with_signal": {"scores": SCORES, "group_ids": GROUPS, "valid": torch.ones(B, dtype=torch.bool)},
    "first_turn_advantages": TURNS | {"valid": torch.ones(B, dtype=torch.bool)},
    "turn_advantages": TURNS | {"discount": 0.1},
    "group_advantages": {
        "scores": SCORES,
        "group_ids": GROUPS,
        "baseline": "mean",
        "scale": "std",
        "valid": torch.ones(B, dtype=torch.bool),
        "std_floor": 1e-6,
    },
    # objectives
    "log_ratio": SAMPLED,
    "reinforce": {"policy_logprobs": logprobs(0, B, T)} | CREDIT,
    "clipped_surrogate": SAMPLED | CREDIT | CLIP | {"dual_clip": 3.0},
    "cispo": SAMPLED | CREDIT | CLIP,
    "gspo": SAMPLED | CREDIT | CLIP | MASKED,
    "k1_value": TAUGHT,
    "reverse_kl_k2": TAUGHT,
    "forward_kl_k3": TAUGHT,
    "loss_estimator": {"name": "k2"},
    "kdrl_joint": TAUGHT | KEEP | {"policy_loss": draw(2, B, T), "distill_coef": 0.5},
    "additive_advantage": TAUGHT | KEEP | CREDIT | {"distill_coef": 0.5},
    "distill_mask": {"rows": "wrong_groups", "correct": KEEP["keep"], "group_ids": torch.tensor([4, 4, 9])},
    "truncated_importance_weight": SAMPLED | MASKED | {"cap": 2.0, "level": "token"},
    "masked_importance_weight": SAMPLED | MASKED | {"low": 0.5, "high": 2.0, "level": "token"},
    "decoupled_surrogate": {
        **SAMPLED,
        **CREDIT,
        **CLIP,
        **MASKED,
        "proximal_logprobs": logprobs(3, B, T),
        "cap": 2.0,
        "level": "token",
    },
    "fresh_enough": {"rollout_versions": torch.tensor([1, 2, 3]), "policy_version": 3, "max_staleness": 1},
    "rltf_self_distillation": {"policy_logprobs": logprobs(0, B, T), "logprob_floor": -5.0} | CREDIT,
    "redi": {
        "policy_logprobs": logprobs(0, B, T),
        "rejected": KEEP["keep"],
        "rejected_weight": 0.8,
        "reweighting": 0.5,
    }
    | MASKED,
    "sequence_logprobs": {"policy_logprobs": logprobs(0, B, T), "length_normalised": True} | MASKED,
    "dpo": {
        **{name: logprobs(i, B) for i, name in enumerate(("chosen", "rejected"))},
        **{name: logprobs(i, B) for i, name in enumerate(("reference_chosen", "reference_rejected"))},
        "inverse_temperature": 0.1,
    },
    "simpo": {"chosen": logprobs(0, B), "rejected": logprobs(1, B), "inverse_temperature": 2.0, "margin": 1.0},
    "pi_distill": {
        "privileged_logprobs": logprobs(0, B, T),
        "bare_logprobs": logprobs(1, B, T),
        "rollout_logprobs": logprobs(2, B, T),
        "teacher_share": 0.5,
    }
    | CREDIT
    | CLIP,
    "penalised_scores": {"scores": SCORES, "divergence": draw(0, B, T), "distill_coef": 0.5} | MASKED,
    "local_denominator": {
        "mask": MASK,
        "kind": "constant",
        "constant_length": T,
        "sequence_ids": torch.arange(B)[:, None].expand(B, T),
    },
    "reduce": {
        "per_token": draw(0, B, T),
        "mask": MASK,
        "kind": "sequence",
        "denominator": 3.0,
        "sequence_ids": torch.arange(B)[:, None].expand(B, T),
    },
    "cross_entropy": {"policy_logprobs": logprobs(0, B, T), "weights": draw(0, B).abs()},
    "per_sample_mixture": {
        "distillation": draw(0, B, T),
        "supervised": draw(1, B, T),
        "weights": torch.tensor([0.0, 0.5, 1.0], dtype=FLOAT),
    },
    "mixed_source_weights": {"on_policy": KEEP["keep"], "on_policy_share": 0.5},
    "ground_truth_weight": {
        "target": draw(0, C),
        "self_distilled": draw(1, C),
        "supervised": draw(2, C),
        "floor": 0.1,
    },
    "constant": {"step": 3, "value": 1.0},
    "anneal": {"step": 3, "initial": 1.0, "decrement": 0.1, "minimum": 0.0},
    "hard_switch": {"step": 3, "at": 2, "before": 1.0, "after": 0.0},
    "linear": {"step": 3, "start": 0.0, "end": 1.0, "steps": 10},
}

nan, inf = math.nan, math.inf
UNIT = [-0.1, 1.1, nan]
POSITIVE = [0.0, -1.0, nan, inf]
NONNEGATIVE = [-1.0, nan, inf]
FINITE = [nan, inf]
# Every setting by its name -> values that are refused wherever it occurs. An empty list: nothing can be wrong with it.
REFUSED: dict[str, list[Any]] = {
    "clip_low": [-0.1, nan],
    "clip_high": [-0.1, nan],
    "dual_clip": [1.0, -2.0, nan],
    "clip": [0.0, -1.0, nan],
    "cap": [0.0, -1.0, nan],
    "low": UNIT,
    "high": [0.9, nan],
    "temperature": POSITIVE,
    "inverse_temperature": POSITIVE,
    "std_floor": POSITIVE,
    "tail_floor": [*POSITIVE, 1.0],
    "distill_coef": NONNEGATIVE,
    "reweighting": NONNEGATIVE,
    "margin": NONNEGATIVE,
    "factor": NONNEGATIVE,
    "mixture_weight": UNIT,
    "threshold": UNIT,
    "discount": UNIT,
    "rejected_weight": UNIT,
    "teacher_share": UNIT,
    "on_policy_share": UNIT,
    "floor": [0.0, *UNIT],
    "denominator": POSITIVE,
    "logprob_floor": [0.1, nan],
    "chunk_size": [0, -1],
    "k": [0, -1, V + 1],
    "vocabulary_size": [0, -1, V + 1],
    "constant_length": [0, -1, None],
    "buffer": [0, -1, 10],
    "max_length": [0, -1, 3],
    "max_staleness": [-1],
    "policy_version": [2],
    "step": [-1],
    "steps": [0, -1],
    "at": [],
    "fill": [],
    "start": FINITE,
    **dict.fromkeys(("value", "initial", "decrement", "minimum", "before", "after", "end"), FINITE),
    "with_entropy": [],
    "length_normalised": [],
    **{name: ["no such"] for name in ("kind", "level", "baseline", "scale", "mean", "rows", "name")},
    "alm.divergence": ["no such"],
    "byte_spans.start": [],
}
FUNCTIONS = {
    name: function
    for package in (tensors, divergences, advantages, objectives)
    for name in package.__all__
    for function in [getattr(package, name)]
    if callable(function) and not isinstance(function, type) and name not in ("Kind", "Reduction")
}
