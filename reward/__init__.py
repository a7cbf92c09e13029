"""Verifiers: completion -> verdict. Usable by itself; imports neither torch nor rlkd's upper layers."""
