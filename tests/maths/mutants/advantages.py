"""Wrong credit."""

from mutation import Mutant

FAMILY = "advantages"
TESTS = ["test_group_advantages.py", "test_credit.py", "test_policy_gradient.py"]
GROUP = "advantages.group"
CREDIT = "advantages.credit"
FEED = "advantages.feedback"
MUTANTS = [
    Mutant(f"{GROUP}:group_advantages", "(values - _group_sum", "(values + _group_sum", "baseline added"),
    Mutant(
        f"{GROUP}:group_advantages",
        "_group_sum(values, groups)[groups] / counts.clamp(min=1)",
        "values.mean()",
        "batch for group",
    ),
    Mutant(f"{GROUP}:group_advantages", ".where(valid, 0.0)\n    if", "\n    if", "abstained rollouts credited"),
    Mutant(
        f"{GROUP}:group_advantages",
        "_group_sum(valid.double(), groups)",
        "_group_sum(torch.ones_like(values), groups)",
        "abstained counted",
    ),
    Mutant(
        f"{GROUP}:group_advantages",
        "centred * counts / (counts - 1).clamp(min=1) if",
        "centred if",
        "leave-one-out is the mean",
    ),
    Mutant(f"{GROUP}:group_advantages", 'if baseline == "leave_one_out" else centred', "", "mean is leave-one-out"),
    Mutant(
        f"{GROUP}:group_advantages",
        "variance = _group_sum(centred.square(), groups)[groups] / (counts - 1)",
        "variance = _group_sum(centred.square(), groups)[groups] / counts",
        "population std",
    ),
    Mutant(f"{GROUP}:group_advantages", "clamp(min=std_floor)", "add(std_floor)", "floor summed"),
    Mutant(f"{GROUP}:group_advantages", "variance.sqrt()", "variance", "variance for std"),
    Mutant(
        f"{GROUP}:group_advantages",
        "centred = centred.where(_has_spread(values, valid, groups), 0.0)",
        "pass",
        "rounding residue as signal",
    ),
    Mutant(f"{GROUP}:_has_spread", "values.where(valid, -torch.inf)", "values", "abstained make spread"),
    Mutant(f"{GROUP}:_has_spread", "values.where(valid, torch.inf)", "values", "abstained make spread below"),
    Mutant(f"{CREDIT}:to_tokens", ".where(response_mask, 0.0)", "", "credit on untrained tokens"),
    Mutant(f"{CREDIT}:reward_to_go", "earned.flip(1).cumsum(1).flip(1)", "earned.cumsum(1)", "credit for the past"),
    Mutant(f"{CREDIT}:reward_to_go", "reward + discount * ahead", "reward + ahead", "discount ignored"),
    Mutant(f"{CREDIT}:reward_to_go", ".where(trained, ahead)", "", "untrained tokens discount"),
    Mutant(
        f"{CREDIT}:reward_to_go",
        "as_float(rewards).detach().where(response_mask, 0.0)",
        "as_float(rewards).detach() * response_mask",
        "mask multiplied",
    ),
    Mutant(f"{CREDIT}:soft_overlong_penalty", "-factor *", "factor *", "bonus for length"),
    Mutant(
        f"{CREDIT}:soft_overlong_penalty", "(max_length - buffer)) / buffer", "max_length) / buffer", "ramp starts late"
    ),
    Mutant(f"{CREDIT}:soft_overlong_penalty", ".clamp(0, 1)", ".clamp(min=0)", "unbounded penalty"),
    Mutant(f"{CREDIT}:add_shaping", ".where(valid, 0.0)", "", "abstained shaped"),
    Mutant(f"{CREDIT}:groups_with_signal", "scores.where(usable, -torch.inf)", "scores", "abstained make signal"),
    Mutant(
        f"{FEED}:first_turn_advantages", "centred + second_scores - first_scores", "centred", "first turn's own credit"
    ),
    Mutant(
        f"{FEED}:first_turn_advantages",
        "centred + second_scores - first_scores",
        "second_scores - first_scores",
        "improvement for baseline",
    ),
    Mutant(
        f"{FEED}:first_turn_advantages",
        "group_advantages(scores=first_scores",
        "group_advantages(scores=second_scores",
        "second-turn baseline",
    ),
    Mutant(f"{FEED}:first_turn_advantages", ".where(read, 0.0)", "", "terminated rollouts credited"),
    Mutant(f"{FEED}:turn_advantages", "discount * second_scores", "second_scores", "discount ignored"),
    Mutant(f"{FEED}:turn_advantages", "valid=has_second_turn", "valid=None", "missing turns in the baseline"),
]
