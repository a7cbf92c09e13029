"""What a distilled model took over from its teacher: agreement, fidelity, provenance, and teacher hacking."""
