"""Wrong joint methods."""

from mutation import Mutant

FAMILY = "joint"
TESTS = ["test_joint.py"]
PRIV = "objectives.privileged"
STALE = "objectives.staleness"
MUTANTS = [
    Mutant(
        f"{PRIV}:pi_distill",
        "teacher_share * surrogate(privileged_logprobs) + (1 - teacher_share)",
        "(1 - teacher_share) * surrogate(privileged_logprobs) + teacher_share",
        "shares swapped",
    ),
    Mutant(
        f"{PRIV}:pi_distill",
        "rollout_logprobs=rollout_logprobs,\n            advantages",
        "rollout_logprobs=privileged_logprobs,\n            advantages",
        "current teacher as denominator",
    ),
    Mutant(f"{PRIV}:pi_distill", "surrogate(bare_logprobs)", "surrogate(privileged_logprobs)", "student never trained"),
    Mutant(f"{PRIV}:penalised_scores", "- distill_coef", "+ distill_coef", "divergence rewarded"),
    Mutant(f"{PRIV}:penalised_scores", ".sum(1)", ".mean(1)", "mean for sum"),
    Mutant(f"{PRIV}:penalised_scores", ".where(response_mask, 0.0)", "", "padding penalised"),
    Mutant("objectives.feedback:rltf_self_distillation", "< logprob_floor", "> logprob_floor", "floor upside down"),
    Mutant(
        "objectives.feedback:rltf_self_distillation",
        "loss.masked_fill(as_float(policy_logprobs) < logprob_floor, 0.0)",
        "loss",
        "floor ignored",
    ),
    Mutant(
        "objectives.feedback:rltf_self_distillation",
        "loss.masked_fill(as_float(policy_logprobs) < logprob_floor, 0.0)",
        "loss.where(as_float(policy_logprobs) >= logprob_floor, 0.0)",
        "NaN passes for an unlikely token",
    ),
    Mutant("objectives.feedback:rltf_self_distillation", "loss = reinforce", "loss = -reinforce", "sign"),
    Mutant(
        f"{STALE}:decoupled_surrogate",
        "rollout_logprobs=proximal_logprobs",
        "rollout_logprobs=rollout_logprobs",
        "clipped around the sampler",
    ),
    Mutant(
        f"{STALE}:decoupled_surrogate",
        "policy_logprobs=proximal_logprobs",
        "policy_logprobs=policy_logprobs",
        "ratio counted twice",
    ),
    Mutant(f"{STALE}:decoupled_surrogate", "return weight * surrogate", "return surrogate", "correction dropped"),
    Mutant(f"{STALE}:fresh_enough", "staleness <= max_staleness", "staleness < max_staleness", "off by one"),
    Mutant(f"{STALE}:fresh_enough", "(staleness < 0)", "(staleness < -9)", "rollouts from the future"),
    Mutant(
        "divergences.vocabulary:divergence",
        "as_float(teacher_logits).detach()",
        "as_float(teacher_logits)",
        "live teacher trained",
    ),
]
