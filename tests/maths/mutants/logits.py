"""Wrong logit losses and teacher mixtures."""

from mutation import Mutant

FAMILY = "logits and teachers"
TESTS = ["test_logits.py"]
LOG = "divergences.logit_matching"
TEA = "divergences.teachers"
MUTANTS = [
    Mutant(f"{LOG}:standardise", "centred / spread", "centred", "not scaled"),
    Mutant(f"{LOG}:standardise", "> 1024", "> 10**9", "whole vocabulary accepted"),
    Mutant(f"{LOG}:standardise", ".where(valid, -torch.inf)", "", "padding keeps mass"),
    Mutant(f"{LOG}:standardise_to_teacher", "* teacher_spread", "", "spread dropped"),
    Mutant(f"{LOG}:standardise_to_teacher", "+ mean", "- mean", "mean sign"),
    Mutant(f"{LOG}:standardise_to_teacher", "teacher.where(valid, 0.0).sum", "teacher.sum", "padding in the mean"),
    Mutant(f"{LOG}:_centred", "values = values.where(valid, 0.0)", "pass", "padding in the statistics"),
    Mutant(
        f"{LOG}:_centred",
        "clamp(min=std_floor**2).sqrt()",
        "sqrt().clamp(min=std_floor)",
        "NaN gradient at equal logits",
    ),
    Mutant(f"{LOG}:plackett_luce", "descending=True", "descending=False", "worst first"),
    Mutant(
        f"{LOG}:plackett_luce",
        "(remaining - ranked)",
        "(ranked.logsumexp(-1, keepdim=True) - ranked)",
        "chosen entries stay in the list",
    ),
    Mutant(f"{LOG}:plackett_luce", "torch.inf)", "0.0)", "gold not first"),
    Mutant(f"{LOG}:plackett_luce", ".where(weights > 0, 0.0)", "", "0 * inf"),
    Mutant(f"{LOG}:plackett_luce", ".clamp(min=torch.finfo(ranked.dtype).min)", "", "NaN gradient at -inf"),
    Mutant(f"{LOG}:plackett_luce", ".softmax(-1).gather(-1, order)", ".softmax(-1)", "weights out of order"),
    Mutant(
        f"{LOG}:plackett_luce",
        "torch.logaddexp(remaining, as_float(policy_rest)[..., None])",
        "remaining",
        "rest ignored",
    ),
    Mutant(f"{LOG}:plackett_luce", "as_float(teacher_logits).detach()", "as_float(teacher_logits)", "teacher trained"),
    Mutant(f"{LOG}:log_cosh_matching", "/ (2 * temperature)", "/ temperature", "temperature off by 2"),
    Mutant(f"{LOG}:log_cosh_matching", "temperature**2 *", "", "scale dropped"),
    Mutant(f"{LOG}:log_cosh_matching", "half + torch.log1p", "torch.log1p", "linear part dropped"),
    Mutant(f"{LOG}:aligned_gradient", ".clamp(max=0.0)", "", "agreement projected away too"),
    Mutant(f"{LOG}:aligned_gradient", "auxiliary - overlap", "auxiliary + overlap", "conflict doubled"),
    Mutant(f"{TEA}:mix_teachers", "share.log() + logprobs", "logprobs", "weights ignored"),
    Mutant(f"{TEA}:mix_teachers", ".where(share > 0, 0.0)", "", "0 * -inf"),
    Mutant(f"{TEA}:mix_teachers", ".sum(0).log_softmax(-1)", ".sum(0)", "not normalised"),
    Mutant(f"{TEA}:mix_teachers", "as_float(teacher_logits).detach()", "as_float(teacher_logits)", "teachers trained"),
    Mutant(f"{TEA}:prior_weights", "/ temperature", "* temperature", "temperature upside down"),
    Mutant(f"{TEA}:trilateral_features", ".square()", ".abs()", "length for squared length"),
    Mutant(f"{TEA}:trilateral_features", "(s, t), (s, g)", "(s, g), (s, t)", "edges swapped"),
    Mutant(f"{TEA}:trilateral_weights", "torch.relu", "torch.tanh", "another network"),
]
