"""Privileged contexts: a field of the data becomes a teacher's prompt, within its own budget, checked for leaks."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from rlkd.data.chat import check_thinking, encode, render
from rlkd.data.prompt import PromptBuilder, fill
from rlkd.errors import RecipeError, did_you_mean
from rlkd.recipe import Recipe
from rlkd.recipe.privileged import PrivilegedSpec
from rlkd.recipe.privileged_checks import teacher_prompt_budget
from rlkd.records import Example, PrivilegedPrompt, Prompt

MISSING = "no privileged text"
TOO_LONG = "privileged text longer than privileged.max_tokens"
CUT = "privileged text cut to privileged.max_tokens"
NO_ROOM = "teacher prompt longer than privileged.max_prompt_tokens"
IN_PROMPT = "privileged text stands in the student's prompt"
OPEN_THINKING = "privileged text opens <think> and never closes it"
PLAIN = "no privileged text, trained without it"

THINK = "<think>"
_OWN = ("solution", "answer")


@dataclass(frozen=True)
class Attached:
    """Prompts with their privileged side. ``excluded`` rows are gone; ``noted`` ones stay and are counted."""

    prompts: list[Prompt]
    excluded: Counter[str]
    noted: Counter[str]


@dataclass(frozen=True)
class PrivilegedBuilder:
    """Renders what the teacher sees. Every text is put in once: braces inside a question or solution stay text."""

    builder: PromptBuilder
    spec: PrivilegedSpec
    max_prompt_tokens: int

    def __post_init__(self) -> None:
        check_thinking(self.builder.tokenizer, self.spec.thinking, where="privileged.thinking")

    @classmethod
    def of(cls, recipe: Recipe, builder: PromptBuilder) -> PrivilegedBuilder | None:
        """The recipe's builder, or None when it has no privileged section."""
        spec = recipe.privileged
        return None if spec is None else cls(builder, spec, teacher_prompt_budget(recipe))

    def attach(self, prompts: Sequence[Prompt]) -> Attached:
        """Add the teacher's side to each prompt.

        Raises: RecipeError when rows lack the field and ``privileged.missing`` is ``error``, or no row is left.
        """
        kept: list[Prompt] = []
        excluded, noted = Counter[str](), Counter[str]()
        lacking = [p.example.id for p in prompts if not self.text(p.example)]
        if lacking and (self.spec.missing == "error" or len(lacking) == len(prompts)):
            raise RecipeError(self._no_field(prompts, lacking))
        for prompt in prompts:
            found, reason = self._attach(prompt)
            if found is None:
                excluded[reason] += 1
                continue
            kept.append(found)
            if reason:
                noted[reason] += 1
        if not kept:
            raise RecipeError(f"privileged: no row is left of {len(prompts)}; left out: {dict(excluded)}")
        return Attached(kept, excluded, noted)

    def _attach(self, prompt: Prompt) -> tuple[Prompt | None, str]:
        text = self.text(prompt.example)
        if not text:
            return (None, MISSING) if self.spec.missing == "exclude" else (prompt, PLAIN)
        if unclosed_thinking(text):  # shown to a teacher, it would swallow the turn that follows
            return None, OPEN_THINKING
        if self.spec.in_prompt == "exclude" and stands_in(text, prompt.text):
            return None, IN_PROMPT
        cut = self._fit(text)
        if cut is None:
            return None, TOO_LONG
        rendered = self.render(prompt.example, cut)
        ids = encode(self.builder.tokenizer, rendered)
        if len(ids) > self.max_prompt_tokens:
            return None, NO_ROOM
        side = PrivilegedPrompt(rendered, tuple(ids), cut, truncated=cut != text)
        return replace(prompt, privileged=side), CUT if side.truncated else ""

    def text(self, example: Example) -> str:
        """The example's privileged text; empty when it has none."""
        name = self.spec.field
        value: Any = getattr(example, name) if name in _OWN else example.fields.get(name)
        return "" if value is None else str(value).strip()

    def _fit(self, text: str) -> str | None:
        """The text within its budget: cut at its beginning, because the answer stands at the end."""
        ids = encode(self.builder.tokenizer, text)
        if len(ids) <= self.spec.max_tokens:
            return text
        if self.spec.too_long == "exclude":
            return None
        tail = str(self.builder.tokenizer.decode(ids[-self.spec.max_tokens :], skip_special_tokens=True))
        return tail.lstrip("\N{REPLACEMENT CHARACTER}").strip()  # a character that the cut went through

    def render(self, example: Example, privileged: str) -> str:
        """The teacher's prompt as text."""
        user = self.builder.user_turn(example)
        filled = fill(self.spec.template, {"question": example.question, "prompt": user, "privileged": privileged})
        system = self.spec.system if self.spec.system is not None else self.builder.data.system
        messages = [{"role": "system", "content": system}] if system else []
        thinking = self.spec.thinking if self.spec.thinking is not None else self.builder.data.thinking
        messages.append({"role": "user", "content": filled})
        return render(self.builder.tokenizer, messages, generate=True, thinking=thinking)

    def _no_field(self, prompts: Sequence[Prompt], lacking: Sequence[str]) -> str:
        name = self.spec.field
        known = [*_OWN, *sorted({key for p in prompts for key in p.example.fields})]
        near = did_you_mean(name, [key for key in known if key != name])
        return (
            f"privileged.field: '{name}' is empty in {len(lacking)} of {len(prompts)} rows (first: {lacking[0]})"
            f"{near}; fields here: {', '.join(known)}. Map it under data.train.fields.extra, or write "
            "privileged.missing: exclude, or plain to train those rows without it"
        )


def stands_in(text: str, prompt: str) -> bool:
    """Whether a text stands in a prompt as whole words, whatever the case and spacing."""
    words, inside = (" ".join(part.casefold().split()) for part in (text, prompt))
    return re.search(rf"(?<!\w){re.escape(words)}(?!\w)", inside) is not None


def unclosed_thinking(text: str) -> bool:
    """Whether a text begins to think and never ends it."""
    return text.count(THINK) > text.count("</think>")


def copied(completion: str, prompt: Prompt, *, run: int) -> bool:
    """Whether a completion repeats ``run`` words in a row of the privileged text that the student was not shown."""
    if prompt.privileged is None:
        return False
    secret = _runs(prompt.privileged.privileged, run) - _runs(prompt.text, run)
    return not secret.isdisjoint(_runs(completion, run))


def _runs(text: str, size: int) -> set[tuple[str, ...]]:
    words = text.casefold().split()
    return {tuple(words[at : at + size]) for at in range(len(words) - size + 1)}


def show(prompts: Sequence[Prompt]) -> str:
    """Both sides of prompts as text, for people: what the student and what the teacher is given."""
    parts = []
    for prompt in prompts:
        side = prompt.privileged
        parts.append(f"--- {prompt.example.id}: student, {len(prompt.token_ids)} tokens\n{prompt.text}")
        if side is not None:
            cut = ", privileged text cut" if side.truncated else ""
            parts.append(f"--- {prompt.example.id}: teacher, {len(side.token_ids)} tokens{cut}\n{side.text}")
        else:
            parts.append(f"--- {prompt.example.id}: no privileged information")
    return "\n".join(parts)
