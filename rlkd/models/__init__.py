"""From a recipe's model section to a folder in transformers' format."""

from rlkd.models.materialise import load_tokenizer, materialise

__all__ = ["load_tokenizer", "materialise"]
