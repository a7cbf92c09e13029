"""Post-training for reasoning LLMs: SFT, reinforcement learning and on-policy distillation from one recipe file."""
