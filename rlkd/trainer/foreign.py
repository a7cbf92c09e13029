"""The run as a teacher with another tokenizer sees it: its own prompts, completions and lengths."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from rlkd.data.prompt import PromptBuilder
from rlkd.errors import TeacherError
from rlkd.models import context_length, load_tokenizer
from rlkd.recipe.data import DataSpec
from rlkd.trainer.context import Run


def foreign_builder(tokenizer: Any, data: DataSpec, *, where: str) -> PromptBuilder:
    """Prompts as a teacher's own template writes them. ``data.thinking`` is the policy's switch: a template that has
    none does without.
    """
    if "enable_thinking" not in str(tokenizer.chat_template):
        data = data.model_copy(update={"thinking": None})
    return PromptBuilder(tokenizer, data, where)


def as_teacher(run: Run, folder: Path) -> Run:
    """The same problems in the tokens of the model in ``folder``; budgets fill its context.

    Raises: TeacherError when its context holds no prompt and completion.
    """
    tokenizer = load_tokenizer(folder)
    builder = foreign_builder(tokenizer, run.recipe.data, where="teacher.model")
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
