"""Refusals that were forgotten."""

from mutation import Mutant

FAMILY = "bad input"
TESTS = ["test_contract.py"]
CHECKS = "tensors.checks"
MUTANTS = [
    Mutant(f"{CHECKS}:require_same_shape", "shape != given[0][1]", "False", "broadcasting"),
    Mutant(f"{CHECKS}:require_floating", "not tensor.is_floating_point()", "False", "token ids for log-probabilities"),
    Mutant(f"{CHECKS}:require_axes", "tensor.ndim != len(axes.split())", "False", "an axis more"),
    Mutant(f"{CHECKS}:require_bool", "mask.dtype != torch.bool", "False", "masks of numbers"),
    Mutant(
        f"{CHECKS}:require_integers",
        "tensor.is_floating_point() or tensor.is_complex() or tensor.dtype == torch.bool",
        "False",
        "ids that are not whole",
    ),
    Mutant(f"{CHECKS}:require_rows", "rows.shape != values.shape[:1]", "False", "rows that don't fit"),
    Mutant("objectives.schedules:_check", "not math.isfinite(number)", "False", "NaN coefficients"),
    Mutant(
        "objectives.supervised:ground_truth_weight",
        "not bool(distance.isfinite() & y.isfinite().all())",
        "False",
        "NaN predictions give the weight 1",
    ),
    Mutant("advantages.group:usable_scores", "not bool(scores.isfinite()", "not bool(True | scores.isfinite()", "NaN"),
    Mutant("advantages.credit:soft_overlong_penalty", 'factor < float("inf")', "factor", "an infinite penalty"),
    Mutant("divergences.support:complete", "not 0 < tail_floor < 1", "False", "a tail without a floor"),
    Mutant("divergences.cross_tokenizer:merge_uncertain", "teacher_boundary.isnan()", "(teacher_boundary > 0)", "NaN"),
    Mutant("divergences.logit_matching:_check_first", "0 <= int(first.min())", "True", "ids outside the support"),
]
