"""Wrong reductions."""

from mutation import Mutant

FAMILY = "reduction"
TESTS = ["test_reduction.py"]
RED = "objectives.reduction"
MUTANTS = [
    Mutant(
        f"{RED}:reduce",
        "masked_sum(per_token, mask) / number",
        "masked_sum(per_token, mask) / mask.sum()",
        "local denominator",
    ),
    Mutant(
        f"{RED}:reduce", "masked_sum(per_token, mask) / number", "(per_token * mask).sum() / number", "mask multiplied"
    ),
    Mutant(f"{RED}:reduce", "weights=mask.flatten().double()", "weights=None", "padding in a sequence's length"),
    Mutant(f"{RED}:reduce", "(1 / counts.clamp(min=1))", "counts", "length multiplied"),
    Mutant(f"{RED}:reduce", 'if kind != "sequence"', "if True", "sequence mean ignored"),
    Mutant(f"{RED}:reduce", "_sequences(mask, sequence_ids)", "_sequences(mask, None)", "packing ignored"),
    Mutant(f"{RED}:reduce", "is_empty=not bool(mask.any())", "is_empty=True", "zero denominator accepted"),
    Mutant(f"{RED}:local_denominator", "mask.sum()", "torch.ones_like(mask).sum()", "padding counted"),
    Mutant(f"{RED}:local_denominator", "[mask].unique()", ".unique()", "empty rows counted"),
    Mutant(f"{RED}:local_denominator", "* (constant_length or 1)", "", "constant length forgotten"),
    Mutant(f"{RED}:local_denominator", "_sequences(mask, sequence_ids)", "_sequences(mask, None)", "packing ignored"),
]
