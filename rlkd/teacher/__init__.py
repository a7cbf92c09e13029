"""Supervision from a teacher's log-probabilities."""
