"""``python -m rlkd`` and ``accelerate launch -m rlkd recipe.yaml``."""

from rlkd.cli import main

main()
