"""Wrong policy gradients."""

from mutation import Mutant

FAMILY = "policy gradient"
TESTS = ["test_policy_gradient.py"]
PG = "objectives.policy_gradient"
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
    Mutant(f"{PG}:cispo", ".detach()", "", "weight trained"),
    Mutant(f"{PG}:cispo", "ratio.clamp(1 - clip_low, 1 + clip_high)", "ratio", "clip ignored"),
    Mutant(f"{PG}:cispo", "weight * reinforce", "reinforce", "weight ignored"),
    Mutant(f"{PG}:gspo", "/ length", "", "sum for mean"),
    Mutant(f"{PG}:gspo", "per_token.where(response_mask, 0.0)", "per_token", "padding in the ratio"),
    Mutant(f"{PG}:gspo", "return -torch", "return torch", "sign"),
    Mutant(f"{PG}:gspo", "length).detach()", "length)", "ratio's size trained as well"),
    Mutant(f"{PG}:gspo", "(per_token - per_token.detach())", "(mean - mean)", "no gradient"),
    Mutant(f"{PG}:gspo", "torch.minimum", "torch.maximum", "optimistic clip"),
    Mutant(f"{PG}:gspo", "1 - clip_low, 1 + clip_high", "1 - clip_high, 1 + clip_low", "clip sides swapped"),
]
