"""Sampling the policy."""
