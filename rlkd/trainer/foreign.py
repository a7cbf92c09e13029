"""The run as a teacher with another tokenizer sees it: its own prompts, completions and lengths."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from rlkd.data.prompt import PromptBuilder
from rlkd.errors import TeacherError
from rlkd.models import context_length, load_tokenizer
from rlkd.trainer.context import Run


def as_teacher(run: Run, folder: Path) -> Run:
    """The same problems in the tokens of the model in ``folder``; budgets fill its context.

    Raises: TeacherError when its context holds no prompt and completion.
    """
    tokenizer = load_tokenizer(folder)
    builder = PromptBuilder(tokenizer, run.recipe.data)
    sides = [[builder.prompt(prompt.example) for prompt in part] for part in (run.train_prompts, run.eval_prompts)]
    longest = max(len(prompt.token_ids) for part in sides for prompt in part)
    room = context_length(folder) - longest - 1
    if room < 1:
        raise TeacherError(f"teacher.model: prompts of up to {longest} of its tokens fill its context")
    rollout = run.recipe.rollout.model_copy(update={"max_prompt_tokens": longest, "max_new_tokens": room})
    evaluation = run.recipe.eval.model_copy(update={"max_new_tokens": room})
    recipe = run.recipe.model_copy(update={"rollout": rollout, "eval": evaluation})
    return dataclasses.replace(
        run,
        recipe=recipe,
        tokenizer=tokenizer,
        builder=builder,
        train_prompts=sides[0],
        eval_prompts=sides[1],
    )
