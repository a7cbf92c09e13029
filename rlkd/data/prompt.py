"""A question as the student's prompt, and a worked solution as the tokens that are trained after it."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from rlkd.data.chat import check_thinking, encode, encode_answer, render
from rlkd.errors import RecipeError
from rlkd.recipe.data import DataSpec
from rlkd.records import Example, Prompt

_PLACEHOLDER = re.compile(r"\{(\w+)\}")


@dataclass(frozen=True)
class PromptBuilder:
    """Question -> rendered, tokenized prompt; solution -> completion tokens that end with the end-of-turn token."""

    tokenizer: Any
    data: DataSpec
    where: str = "policy"  # the model's section

    def __post_init__(self) -> None:
        if not getattr(self.tokenizer, "chat_template", None):
            raise RecipeError(
                f"{self.where}: its tokenizer has no chat template; write {self.where}.chat_template (Jinja), "
                "e.g. \"{% for m in messages %}{{ m['content'] }}{% endfor %}\""
            )
        if self.tokenizer.eos_token_id is None:
            raise RecipeError(
                f"{self.where}: its tokenizer has no end-of-sequence token, so no completion could ever stop"
            )
        check_thinking(self.tokenizer, self.data.thinking, where="data.thinking")

    def prompt(self, example: Example) -> Prompt:
        """Render and tokenize the generation prompt of one example."""
        text = render(self.tokenizer, self.messages(example), generate=True, thinking=self.data.thinking)
        return Prompt(example=example, text=text, token_ids=tuple(encode(self.tokenizer, text)))

    def completion_ids(self, example: Example, prompt: Prompt) -> tuple[int, ...]:
        """Token ids of the worked solution as the assistant's turn, ending with the end-of-turn token.

        Raises: RecipeError when the template renders a trained turn that the generation prompt does not begin.
        """
        if example.solution is None:
            raise RecipeError(f"example {example.id} has no solution to fine-tune on; map data.fields.solution")
        return encode_answer(
            self.tokenizer,
            self.messages(example),
            example.solution,
            prompt=prompt.text,
            thinking=self.data.thinking,
        )

    def prompts(self, examples: Iterable[Example], *, max_tokens: int) -> tuple[list[Prompt], Counter[str]]:
        """Prompts that fit, and how many did not."""
        kept, excluded = [], Counter[str]()
        for example in examples:
            prompt = self.prompt(example)
            if len(prompt.token_ids) > max_tokens:
                excluded[f"prompt longer than {max_tokens} tokens"] += 1
            else:
                kept.append(prompt)
        return kept, excluded

    def user_turn(self, example: Example) -> str:
        """What the student's user turn says, before the chat template."""
        texts = {name: value for name, value in example.fields.items() if isinstance(value, str)}
        options = example.fields.get("options")
        if isinstance(options, Mapping):
            texts["options"] = "\n".join(f"{letter}. {text}" for letter, text in options.items())
        return fill(self.data.prompt, texts | {"question": example.question})

    def messages(self, example: Example) -> list[dict[str, str]]:
        system = [{"role": "system", "content": self.data.system}] if self.data.system else []
        return [*system, {"role": "user", "content": self.user_turn(example)}]


def fill(template: str, values: Mapping[str, str]) -> str:
    """Replace ``{name}`` for the given names, each once and never inside what was put in; other braces stay."""
    return _PLACEHOLDER.sub(lambda found: values.get(found[1], found[0]), template)
