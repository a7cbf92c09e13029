"""Curation: small steps over rows, run part by part, resumable, each with a report and a list of what it removed.

Importing this package registers every step (``rlkd.data.curate.step.STEPS``); a model library is loaded only by use.
"""

from rlkd.data.curate import ddk, decontaminate, ded, dedup, filters, generate, perplexity, provenance, where
from rlkd.data.curate.report import StepReport
from rlkd.data.curate.run import curate, curated_rows
from rlkd.data.curate.step import STEPS, Decision, Removal, Step, TraceStep, build_step

__all__ = [
    "STEPS",
    "Decision",
    "Removal",
    "Step",
    "StepReport",
    "TraceStep",
    "build_step",
    "curate",
    "curated_rows",
    "ddk",
    "decontaminate",
    "ded",
    "dedup",
    "filters",
    "generate",
    "perplexity",
    "provenance",
    "where",
]
