"""The run: stages, their loops, the run folder and what the user sees of it."""
