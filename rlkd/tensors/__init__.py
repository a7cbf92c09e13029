"""Masks, checks and chunked vocabulary work: the ground under every objective."""

from rlkd.tensors.checks import as_float, require_mask, require_same_shape
from rlkd.tensors.chunked import LogprobOutput, chunked_logprobs
from rlkd.tensors.masked import masked_mean, masked_sum, select
from rlkd.tensors.rowwise import TeacherHead, chunked_rows

__all__ = [
    "LogprobOutput",
    "TeacherHead",
    "as_float",
    "chunked_logprobs",
    "chunked_rows",
    "masked_mean",
    "masked_sum",
    "require_mask",
    "require_same_shape",
    "select",
]
