"""From raw rows to training examples: cards, checks, pairs and curation."""
