"""Wrong work row by row."""

from mutation import Mutant

FAMILY = "row by row"
TESTS = ["test_rowwise.py"]
ROW = "tensors.rowwise"
MUTANTS = [
    Mutant(f"{ROW}:_ChunkedRows.backward", "/ job.temperature", "", "temperature forgotten in backward"),
    Mutant(f"{ROW}:_ChunkedRows.backward", ".any(1).nonzero()", ".any(1).logical_not().nonzero()", "wrong rows"),
    Mutant(
        f"{ROW}:_ChunkedRows.backward",
        "(gradient != 0)[..., None].flatten(1).any(1).nonzero().squeeze(1)",
        "torch.arange(len(gradient))",
        "masked rows touched",
    ),
    Mutant(f"{ROW}:_ChunkedRows.backward", ".split(job.size)", ".split(10**9)", "the whole vocabulary going back"),
    Mutant(f"{ROW}:_ChunkedRows.backward", "gradient[rows])", "torch.ones_like(chunk))", "incoming gradient ignored"),
    Mutant(f"{ROW}:_Job.run", "t.bias, self.temperature", "t.bias, 1.0", "teachers not tempered"),
    Mutant(f"{ROW}:_Job.run", "t.hidden[rows]", "t.hidden[: len(logits)]", "teacher's first rows for all"),
    Mutant(f"{ROW}:_Job.run", "extra[rows]", "extra[: len(logits)]", "extras of the first rows for all"),
    Mutant(f"{ROW}:_Job.run", "output.shape[:1] != logits.shape[:1]", "False", "rows lost"),
    Mutant(f"{ROW}:chunked_rows", "len(set(counts)) > 1", "False", "unequal rows accepted"),
]
