"""Wrong objectives."""

from mutation import Mutant

FAMILY = "objectives"
TESTS = ["test_objectives.py"]
PG = "objectives.policy_gradient"
EST = "objectives.estimators"
KDRL = "objectives.kdrl"
IMP = "objectives.importance"
SCHED = "objectives.schedules"
MUTANTS = [
    Mutant(f"{PG}:reinforce", "-credit *", "credit *", "sign"),
    Mutant(f"{PG}:log_ratio", "- rollout)", "+ rollout)", "ratio upside down"),
    Mutant(f"{PG}:log_ratio", ".detach()", "", "sampler trained"),
    Mutant(f"{PG}:log_ratio", "-LOG_RATIO_BOUND, LOG_RATIO_BOUND", "-1e9, 1e9", "unbounded ratio"),
    Mutant(f"{PG}:clipped_surrogate", "return -objective", "return objective", "sign"),
    Mutant(f"{PG}:clipped_surrogate", "torch.minimum(ratio", "torch.maximum(ratio", "optimistic clip"),
    Mutant(
        f"{PG}:clipped_surrogate", "1 - clip_low, 1 + clip_high", "1 - clip_high, 1 + clip_low", "clip sides swapped"
    ),
    Mutant(f"{PG}:clipped_surrogate", "1 - clip_low, 1 + clip_high", "1 - clip_low, 1 + clip_low", "symmetric clip"),
    Mutant(f"{PG}:clipped_surrogate", ".exp()", "", "log-ratio for ratio"),
    Mutant(f"{PG}:clipped_surrogate", "credit < 0", "credit > 0", "dual clip on the wrong side"),
    Mutant(f"{PG}:clipped_surrogate", "torch.maximum(objective", "torch.minimum(objective", "dual clip as lower bound"),
    Mutant(f"{PG}:clipped_surrogate", ".detach()", "", "advantages trained"),
    Mutant(f"{PG}:reinforce", ".detach()", "", "advantages trained"),
    Mutant("tensors.checks:as_float", "values.float()", "values", "half precision"),
    Mutant(f"{EST}:reverse_kl_k2", ".detach()", "", "teacher trained"),
    Mutant(f"{EST}:forward_kl_k3", ".detach()", "", "teacher trained"),
    Mutant(f"{PG}:cispo", ".detach()", "", "weight trained"),
    Mutant(f"{PG}:cispo", "ratio.clamp(1 - clip_low, 1 + clip_high)", "ratio", "clip ignored"),
    Mutant(f"{PG}:cispo", "weight * reinforce", "reinforce", "weight ignored"),
    Mutant(f"{PG}:gspo", "/ length", "", "sum for mean"),
    Mutant(f"{PG}:gspo", "per_token.where(response_mask, 0.0)", "per_token", "padding in the ratio"),
    Mutant(f"{PG}:gspo", "return -torch", "return torch", "sign"),
    Mutant(f"{PG}:gspo", "torch.minimum", "torch.maximum", "optimistic clip"),
    Mutant(f"{PG}:gspo", "1 - clip_low, 1 + clip_high", "1 - clip_high, 1 + clip_low", "clip sides swapped"),
    Mutant(f"{EST}:k1_value", ".detach()", "", "k1 not detached"),
    Mutant(
        f"{EST}:k1_value",
        "as_float(policy_logprobs) - as_float(teacher_logprobs)",
        "as_float(teacher_logprobs) - as_float(policy_logprobs)",
        "KL direction",
    ),
    Mutant(f"{EST}:reverse_kl_k2", ".square() / 2", "", "k1 as a loss"),
    Mutant(f"{EST}:reverse_kl_k2", ".square() / 2", ".square()", "factor 2"),
    Mutant(f"{EST}:reverse_kl_k2", ".square() / 2", ".abs()", "absolute log-ratio"),
    Mutant(
        f"{EST}:reverse_kl_k2",
        "as_float(policy_logprobs) - teacher",
        "as_float(policy_logprobs).detach() - teacher",
        "no gradient",
    ),
    Mutant(
        f"{EST}:forward_kl_k3",
        "(teacher - as_float(policy_logprobs))",
        "(as_float(policy_logprobs) - teacher)",
        "direction",
    ),
    Mutant(f"{EST}:forward_kl_k3", "expm1() - difference", "expm1()", "missing -R"),
    Mutant(f"{EST}:loss_estimator", "if estimator.loss is None:", "if False:", "k1 accepted"),
    Mutant(f"{EST}:loss_estimator", "name.strip().lower()", "name", "alias slips past"),
    Mutant(f"{KDRL}:kdrl_joint", "_kept(distillation, keep)", "distillation", "mask ignored"),
    Mutant(f"{KDRL}:kdrl_joint", "policy_loss +", "policy_loss -", "distillation repels"),
    Mutant(f"{KDRL}:kdrl_joint", "_coefficient(distill_coef) *", "", "coefficient ignored"),
    Mutant(f"{KDRL}:additive_advantage", "-k1_value", "k1_value", "credit repels from the teacher"),
    Mutant(f"{KDRL}:additive_advantage", "_kept(reward, keep)", "reward", "mask ignored"),
    Mutant(f"{KDRL}:additive_advantage", "as_float(advantages).detach() +", "", "advantage dropped"),
    Mutant(f"{KDRL}:distill_mask", "return ~correct", "return correct", "distils right answers"),
    Mutant(f"{KDRL}:distill_mask", "~torch.isin", "torch.isin", "distils solved groups"),
    Mutant(f"{KDRL}:distill_mask", "group_ids[correct]", "group_ids[~correct]", "groups with a wrong answer"),
    Mutant(f"{SCHED}:anneal", "max(", "min(", "floor as ceiling"),
    Mutant(f"{SCHED}:hard_switch", "step < at", "step <= at", "off by one"),
    Mutant(f"{SCHED}:linear", "(end - start)", "(start - end)", "rises for falls"),
    Mutant(f"{IMP}:truncated_importance_weight", ".clamp(max=cap)", "", "no cap"),
    Mutant(f"{IMP}:masked_importance_weight", "(ratio <= high)", "(ratio <= 1e9)", "no upper bound"),
    Mutant(f"{IMP}:masked_importance_weight", "(ratio >= low)", "(ratio >= 0)", "no lower bound"),
    Mutant(f"{IMP}:masked_importance_weight", ", 0.0)", ", 1.0)", "outliers kept"),
    Mutant(f"{IMP}:_ratio", "total / response_mask", "total * response_mask", "sum for mean"),
    Mutant(f"{IMP}:_ratio", "per_token = per_token.where(response_mask, 0.0)", "pass", "padding in the ratio"),
    Mutant(f"{IMP}:_ratio", "total.clamp(-LOG_RATIO_BOUND, LOG_RATIO_BOUND)", "(total * 1e3)", "unbounded sum"),
]
