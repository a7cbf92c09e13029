"""Wrong divergences."""

from mutation import Mutant

FAMILY = "divergences"
TESTS = ["test_divergences.py", "test_chunked_divergences.py"]
SUM = "divergences.summands"
VOC = "divergences.vocabulary"
SUP = "divergences.support"
CHU = "divergences.chunked"
KER = "divergences.kernels"
MUTANTS = [
    Mutant(f"{SUM}:_forward", "weigh(lt, lt - ls)", "weigh(ls, ls - lt)", "KL direction"),
    Mutant(f"{SUM}:_reverse", "weigh(ls, ls - lt)", "weigh(lt, lt - ls)", "KL direction"),
    Mutant(f"{SUM}:_reverse_slope", "ls - lt + 1", "ls - lt", "product rule forgotten"),
    Mutant(f"{SUM}:_jensen_shannon", "mixture(lt, ls, beta)", "mixture(ls, lt, beta)", "mixture swapped"),
    Mutant(f"{SUM}:_jensen_shannon", "beta * weigh(lt", "(1 - beta) * weigh(lt", "weights swapped"),
    Mutant(f"{SUM}:_jensen_shannon_slope", "(1 - beta)", "beta", "weight swapped in the slope"),
    Mutant(f"{SUM}:_skewed_forward", "mixture(lt, ls, skew)", "mixture(ls, lt, skew)", "mixture swapped"),
    Mutant(f"{SUM}:_skewed_reverse", "mixture(ls, lt, skew)", "mixture(lt, ls, skew)", "mixture swapped"),
    Mutant(f"{SUM}:_skewed_reverse_slope", "- skew * log_share.exp()", "", "mixture's own slope forgotten"),
    Mutant(f"{SUM}:_skewed_forward_slope", "-(1 - skew)", "-1.0", "skew forgotten in the slope"),
    Mutant(f"{SUM}:_total_variation", "/ 2", "", "factor 2"),
    Mutant(f"{SUM}:_total_variation_slope", "* ls.exp() / 2", "/ 2", "slope in p for slope in log p"),
    Mutant(f"{SUM}:weigh", "values.where(log_weight > -torch.inf, 0.0)", "values", "0 * inf"),
    Mutant(
        f"{SUM}:mixture",
        "torch.maximum(log_a, log_b) == -torch.inf",
        "torch.zeros_like(log_a, dtype=torch.bool)",
        "no gradient at zero mass",
    ),
    Mutant(f"{SUM}:resolve", "LIMITS.get((kind, weight), kind)", "kind", "Jensen-Shannon ends are 0"),
    Mutant(
        f"{VOC}:divergence",
        "summands.clamp(max=clip).sum(-1)",
        "summands.sum(-1).clamp(max=clip)",
        "clip after the sum",
    ),
    Mutant(f"{VOC}:divergence", "summands.clamp(max=clip)", "summands.clamp(-clip, clip)", "both sides clipped"),
    Mutant(f"{VOC}:divergence", "as_float(teacher_logits).detach()", "as_float(teacher_logits)", "teacher trained"),
    Mutant(
        f"{VOC}:divergence",
        "as_float(teacher_logits).detach() / temperature",
        "as_float(teacher_logits).detach()",
        "one side tempered",
    ),
    Mutant(f"{VOC}:divergence", "lt.exp() *", "ls.exp() *", "policy's mass reported"),
    Mutant(
        f"{VOC}:divergence",
        "(as_float(policy_logits) / temperature).log_softmax(-1)",
        "as_float(policy_logits) / temperature",
        "not normalised",
    ),
    Mutant(
        f"{SUP}:_log_tail",
        "support.ids.where(support.valid, vocabulary)",
        "support.ids",
        "invalid slots leave the tail",
    ),
    Mutant(f"{SUP}:_log_tail", "outside.masked_fill(nothing, 0.0)", "outside", "NaN gradient of an empty tail"),
    Mutant(f"{SUP}:bucketed", ".where(support.valid, -torch.inf)", "", "repeated entries counted twice"),
    Mutant(f"{SUP}:union_support", "second.valid & ~repeated.any(-1)", "second.valid", "repeated entries kept"),
    Mutant(f"{SUP}:complete", "(1 - mass)", "mass", "tail is the head's mass"),
    Mutant(f"{SUP}:complete", ".clamp(min=tail_floor)", "", "empty tail is -inf"),
    Mutant(f"{SUP}:complete", "1 + 1e-3", "1e9", "unnormalised accepted"),
    Mutant(f"{CHU}:_ChunkedDivergence.forward", "is_training and ", "", "slopes of what is only scored"),
    Mutant(f"{CHU}:_ChunkedDivergence.backward", "/ ctx.setting.temperature", "", "temperature forgotten in backward"),
    Mutant(f"{CHU}:_ChunkedDivergence.forward", "div_(setting.temperature)", "div_(1)", "temperature forgotten ahead"),
    Mutant(f"{CHU}:_ChunkedDivergence.backward", "part.mul_(factor)", "part", "weight forgotten ahead"),
    Mutant(
        f"{CHU}:_ChunkedDivergence.backward", "ahead, ctx.ahead = ctx.ahead, None", "ahead = ctx.ahead", "scaled twice"
    ),
    Mutant(
        f"{CHU}:_common",
        "torch.equal(gradient, alike * torch.full_like(gradient, factor))",
        "True",
        "any gradient taken for the one counted on",
    ),
    Mutant(f"{CHU}:_joined", "place.copy_(block.gradient)", "pass", "gradients of blocks not gathered"),
    Mutant(f"{CHU}:_logits", "weight[:shared]", "weight", "padding rows in the distribution"),
    Mutant(f"{CHU}:_shared_vocabulary", "policy if given is None else given", "policy", "vocabulary_size ignored"),
    Mutant(f"{KER}:_forward_kl", "gap = lt - ls", "gap = ls - lt", "sign in the fast kernel"),
    Mutant(f"{KER}:_forward_kl", ".sub_(p_teacher)", "", "teacher forgotten in the fast gradient"),
    Mutant(f"{KER}:_reverse_kl", ".sub_(values[:, None])", "", "softmax forgotten in the fast gradient"),
    Mutant(f"{KER}:_jensen_shannon", "lt + math.log(beta), ls", "ls + math.log(beta), lt", "fast mixture swapped"),
    Mutant(f"{KER}:_jensen_shannon", ".mul_(1 - beta)", "", "weight forgotten in the fast gradient"),
    Mutant(f"{KER}:_any", "slope.masked_fill_(cut, 0.0)", "pass", "clip forgotten in the gradient"),
    Mutant(f"{KER}:_any", "summands.clamp_(max=setting.clip)", "pass", "clip forgotten"),
    Mutant(f"{KER}:_any", "slope -= ls.exp_() * slope.sum(1, keepdim=True)", "pass", "softmax forgotten"),
    Mutant(
        f"{KER}:chunk_divergence", "is_finite and setting.clip == math.inf", "True", "fast kernel where it doesn't hold"
    ),
]
