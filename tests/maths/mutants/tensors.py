"""Wrong masks and chunked log-probabilities."""

from mutation import Mutant

FAMILY = "tensors"
TESTS = ["test_tensors.py"]
MASK = "tensors.masked"
CHUNK = "tensors.chunked"
MUTANTS = [
    Mutant(f"{MASK}:select", "as_float(values).where(mask, fill)", "as_float(values) * mask", "multiplied by the mask"),
    Mutant(f"{MASK}:select", "where(mask, fill)", "where(~mask, fill)", "mask inverted"),
    Mutant(f"{MASK}:select", "as_float(values)", "values", "half precision"),
    Mutant(
        f"{MASK}:masked_mean",
        "checked_denominator(denominator, is_empty=not bool(count))",
        "count",
        "local denominator",
    ),
    Mutant(f"{MASK}:masked_mean", "count.clamp(min=1)", "count", "0 / 0 for an empty mask"),
    Mutant(f"{MASK}:checked_denominator", "not 0 < number", "not 0 <= number", "zero denominator"),
    Mutant(f"{MASK}:checked_denominator", '< float("inf")', '<= float("inf")', "infinite denominator"),
    Mutant(f"{CHUNK}:chunk_logits", "logits /= temperature", "logits *= temperature", "temperature upside down"),
    Mutant(f"{CHUNK}:chunk_logits", "logits += bias", "logits -= bias", "bias sign"),
    Mutant(f"{CHUNK}:HeadGradient.add", "self.hidden[rows] = ", "self.hidden[rows] = 2 * ", "hidden gradient twice"),
    Mutant(
        f"{CHUNK}:HeadGradient.__init__",
        "dtype=precise, device=weight",
        "dtype=weight.dtype, device=weight",
        "bfloat16 sum",
    ),
    Mutant(f"{CHUNK}:_ChunkedLogprobs.forward", "largest + mass.log()", "mass.log()", "maximum forgotten"),
    Mutant(
        f"{CHUNK}:_ChunkedLogprobs.forward", "logits.clamp(min=torch.finfo(precise).min)", "logits.clone()", "0 * -inf"
    ),
    Mutant(
        f"{CHUNK}:_ChunkedLogprobs.forward", "ctx.mark_non_differentiable(entropy)", "pass", "entropy seems trained"
    ),
    Mutant(f"{CHUNK}:_ChunkedLogprobs.backward", "/ ctx.temperature", "", "temperature forgotten in backward"),
    Mutant(f"{CHUNK}:_ChunkedLogprobs.backward", "logits.sub_(normaliser[rows, None])", "logits", "not normalised"),
    Mutant(f"{CHUNK}:_ChunkedLogprobs.forward", "logits.div_(mass[:, None])", "logits", "not normalised where kept"),
    Mutant(f"{CHUNK}:_slope", "probabilities.neg_()", "probabilities", "sign of the softmax part"),
    Mutant(f"{CHUNK}:_ChunkedLogprobs.forward", "is_training and ", "", "slopes of what is only scored"),
    Mutant(f"{CHUNK}:Slopes.takes", "self._room = 0", "pass", "a smaller last chunk kept after a gap"),
    Mutant(f"{CHUNK}:Slopes.keep", "self._room -= len(slope)", "pass", "room without end"),
    Mutant(f"{CHUNK}:Slopes.rows", "chunk[within]", "chunk[: len(within)]", "another row's slope"),
    Mutant(f"{CHUNK}:Slopes.rows", "yield start + within", "yield within", "another row's hidden state"),
    Mutant(f"{CHUNK}:Slopes.rows", "yield start + rows", "yield rows", "rows beyond the kept ones misplaced"),
    Mutant(
        f"{CHUNK}:Slopes.rows",
        "gradient[start : start + len(chunk)].nonzero().squeeze(1)",
        "torch.arange(len(chunk))",
        "masked rows touched where kept",
    ),
    Mutant(
        f"{CHUNK}:Slopes.rows",
        "gradient[start:].nonzero().squeeze(1)",
        "torch.arange(len(gradient) - start)",
        "masked rows touched",
    ),
    Mutant(f"{CHUNK}:_check_targets", "< vocabulary", "<= vocabulary", "target outside"),
]
