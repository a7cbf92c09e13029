"""Reading a run folder: one HTML file that needs nothing else, and a view for the terminal."""

from rlkd.report.page import write_report
from rlkd.report.reading import RunRecord, read_run
from rlkd.report.terminal import show_rollouts

__all__ = ["RunRecord", "read_run", "show_rollouts", "write_report"]
