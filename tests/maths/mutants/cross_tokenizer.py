"""Wrong alignment and chunk losses."""

from mutation import Mutant

FAMILY = "across tokenizers"
TESTS = ["test_cross_tokenizer.py"]
ALM = "divergences.cross_tokenizer"
MUTANTS = [
    Mutant(f"{ALM}:byte_spans", "start += length", "start += 1", "tokens for bytes"),
    Mutant(f"{ALM}:align_chunks", "if ends[0] != ends[1]", "if False", "uneven cover accepted"),
    Mutant(
        f"{ALM}:align_chunks",
        "for _, end in teacher_spans} & {end",
        "for _, end in teacher_spans} | {end",
        "ends of either side",
    ),
    Mutant(f"{ALM}:_cuts", "start = i + 1", "start = i", "tokens in two chunks"),
    Mutant(f"{ALM}:_cuts", "and is_last_there", "", "empty tokens make chunks"),
    Mutant(f"{ALM}:_check_spans", "start != spans[i - 1][1]", "False", "gaps accepted"),
    Mutant(f"{ALM}:chunk_logprobs", "owner[start:end] = chunk", "owner[start] = chunk", "first token only"),
    Mutant(
        f"{ALM}:chunk_logprobs",
        "values.where(owner < len(ranges), 0.0)",
        "values / (owner < len(ranges))",
        "tokens outside chunks",
    ),
    Mutant(f"{ALM}:alm", "cross + weigh(u, u)", "cross", "entropy half dropped"),
    Mutant(f"{ALM}:alm", "- weigh(u, w)", "- weigh(w, u)", "direction"),
    Mutant(f"{ALM}:alm", "torch.expm1(u) * _log1mexp(w) - weigh(u, w)", "-weigh(u, w)", "other outcome dropped"),
    Mutant(f"{ALM}:alm", "weigh(u, u)", "u.exp() * u", "0 * -inf"),
    Mutant(f"{ALM}:chunk_logprobs", "start < ranges[chunk - 1][1]", "False", "overlap accepted"),
    Mutant(f"{ALM}:boundary_logmass", ".log_softmax(-1)", "", "logits taken for log-probabilities"),
    Mutant(f"{ALM}:alm", "_below_zero(teacher / temperature)", "_below_zero(teacher)", "teacher not tempered"),
    Mutant(f"{ALM}:alm", "as_float(teacher_chunks).detach()", "as_float(teacher_chunks)", "teacher trained"),
    Mutant(f"{ALM}:alm", "policy + as_float(policy_boundary)", "policy - as_float(policy_boundary)", "debiasing sign"),
    Mutant(f"{ALM}:_below_zero", "x.where(x < -EDGE, x - EDGE)", "x", "infinite at probability 1"),
    Mutant(f"{ALM}:boundary_logmass", "~starts_pretoken, -torch.inf", "starts_pretoken, -torch.inf", "mask inverted"),
    Mutant(f"{ALM}:merge_uncertain", "mass < threshold", "mass > threshold", "sure chunks merged"),
    Mutant(f"{ALM}:gradient_magnitude_weights", "1 / as_float", "as_float", "large gradients favoured"),
]
