"""Wrong offline losses."""

from mutation import Mutant

FAMILY = "offline"
TESTS = ["test_offline.py"]
PREF = "objectives.preference"
SUPER = "objectives.supervised"
MUTANTS = [
    Mutant(f"{PREF}:redi", "new_full(rejected.shape, -1.0)", "new_full(rejected.shape, 1.0)", "right traces lowered"),
    Mutant(
        f"{PREF}:redi",
        "masked_fill(rejected, rejected_weight)",
        "masked_fill(rejected, -rejected_weight)",
        "wrong traces raised",
    ),
    Mutant(f"{PREF}:redi", "masked_fill(rejected, rejected_weight)", "masked_fill(rejected, 1.0)", "alpha ignored"),
    Mutant(f"{PREF}:redi", "masked_fill(rejected", "masked_fill(~rejected", "right and wrong swapped"),
    Mutant(f"{PREF}:redi", ".detach()", "", "reweighting trained"),
    Mutant(f"{PREF}:redi", "factor.where(rejected, 1.0)", "factor", "right traces reweighted"),
    Mutant(f"{PREF}:redi", "length_normalised=True", "length_normalised=False", "reweighting by the sum"),
    Mutant(f"{PREF}:sequence_logprobs", "where(response_mask, 0.0)", "mul(response_mask)", "mask multiplied"),
    Mutant(f"{PREF}:sequence_logprobs", "if length_normalised else total", "", "always normalised"),
    Mutant(f"{PREF}:dpo", "-logsigmoid", "logsigmoid", "sign"),
    Mutant(f"{PREF}:dpo", "- reference)", ")", "reference dropped"),
    Mutant(f"{PREF}:dpo", "- reference)", "+ reference)", "reference added"),
    Mutant(f"{PREF}:dpo", "inverse_temperature * (", "(", "temperature ignored"),
    Mutant(f"{PREF}:simpo", "- margin)", "+ margin)", "margin helps"),
    Mutant(
        f"{PREF}:simpo",
        "as_float(chosen) - as_float(rejected)",
        "as_float(rejected) - as_float(chosen)",
        "right and wrong swapped",
    ),
    Mutant(f"{SUPER}:cross_entropy", "-as_float", "as_float", "sign"),
    Mutant(f"{SUPER}:cross_entropy", "if weights is None", "if True", "weights ignored"),
    Mutant(
        f"{SUPER}:per_sample_mixture",
        "share * as_float(distillation) + (1 - share)",
        "(1 - share) * as_float(distillation) + share",
        "shares swapped",
    ),
    Mutant(
        f"{SUPER}:mixed_source_weights",
        "torch.where(on_policy, sampled, given)",
        "torch.where(on_policy, given, sampled)",
        "sources swapped",
    ),
    Mutant(f"{SUPER}:mixed_source_weights", "count.clamp(min=1)", "total", "number of rows matters"),
    Mutant(f"{SUPER}:ground_truth_weight", "(y - g)", "(y - h)", "distance from the wrong end"),
    Mutant(f"{SUPER}:ground_truth_weight", "clamp(floor, 1.0)", "clamp(0.0, 1.0)", "no floor"),
    Mutant(f"{SUPER}:_row_weights", "(weights >= 0)", "(weights >= -9)", "negative weights"),
    Mutant(f"{SUPER}:_row_weights", "(weights <= upper)", "(weights <= 9)", "weights above 1"),
]
