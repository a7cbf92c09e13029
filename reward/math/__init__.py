"""Final answers of mathematics problems: extraction, one spelling, structure, value."""

from reward.math.verifier import MathVerifier

__all__ = ["MathVerifier"]
