"""From a recipe's model section to a folder in transformers' format."""

from rlkd.models.materialise import load_tokenizer, materialise, tokenizer_of
from rlkd.models.window import check_windows, context_length

__all__ = ["check_windows", "context_length", "load_tokenizer", "materialise", "tokenizer_of"]
