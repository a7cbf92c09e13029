"""Curation: small steps over rows, run part by part, resumable, each with a report and a list of what it removed."""
