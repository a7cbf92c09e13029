"""Wrong importance weights."""

from mutation import Mutant

FAMILY = "importance"
TESTS = ["test_importance.py"]
IMP = "objectives.importance"
MUTANTS = [
    Mutant(f"{IMP}:truncated_importance_weight", ".clamp(max=cap)", "", "no cap"),
    Mutant(f"{IMP}:masked_importance_weight", "(ratio > high)", "(ratio > 1e9)", "no upper bound"),
    Mutant(f"{IMP}:masked_importance_weight", "(ratio < low)", "(ratio < 0)", "no lower bound"),
    Mutant(f"{IMP}:masked_importance_weight", ", 0.0)", ", 1.0)", "outliers kept"),
    Mutant(
        f"{IMP}:masked_importance_weight",
        "(ratio < low) | (ratio > high)",
        "~((ratio >= low) & (ratio <= high))",
        "NaN passes for an outlier",
    ),
    Mutant(f"{IMP}:_ratio", "(per_token.cumsum(1) - per_token)", "per_token.cumsum(1)", "own token in the prefix"),
    Mutant(f"{IMP}:_ratio", "total / response_mask", "total * response_mask", "sum for mean"),
    Mutant(f"{IMP}:_ratio", "per_token = per_token.where(response_mask, 0.0)", "pass", "padding in the ratio"),
    Mutant(f"{IMP}:_ratio", "total.clamp(-LOG_RATIO_BOUND, LOG_RATIO_BOUND)", "(total * 1e3)", "unbounded sum"),
]
