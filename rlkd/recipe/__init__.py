"""The recipe: a torch-free, strict, typed description of one experiment."""

from rlkd.recipe.loading import has_launch_lines, load_recipe, validate_recipe
from rlkd.recipe.schema import Recipe

__all__ = ["Recipe", "has_launch_lines", "load_recipe", "validate_recipe"]
