"""Wrong joint losses, masks and schedules."""

from mutation import Mutant

FAMILY = "KDRL"
TESTS = ["test_kdrl.py"]
KDRL = "objectives.kdrl"
SCHED = "objectives.schedules"
MUTANTS = [
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
]
