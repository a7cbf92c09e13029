"""The one place where a chat template is applied. Engines receive token ids, never text."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from rlkd.errors import RecipeError
from rlkd.recipe.schema import DataSpec
from rlkd.records import Example, Prompt

_PLACEHOLDER = re.compile(r"\{(\w+)\}")


@dataclass(frozen=True)
class PromptBuilder:
    """Question -> rendered, tokenized prompt; solution -> completion tokens that end with the end-of-turn token."""

    tokenizer: Any
    data: DataSpec

    def __post_init__(self) -> None:
        if not getattr(self.tokenizer, "chat_template", None):
            raise RecipeError(
                "policy: its tokenizer has no chat template; write policy.chat_template (Jinja), "
                "e.g. \"{% for m in messages %}{{ m['content'] }}{% endfor %}\""
            )
        if self.tokenizer.eos_token_id is None:
            raise RecipeError("policy: its tokenizer has no end-of-sequence token, so no completion could ever stop")
        check_thinking(self.tokenizer, self.data.thinking, where="data.thinking")

    def prompt(self, example: Example) -> Prompt:
        """Render and tokenize the generation prompt of one example."""
        text = self._render(self.messages(example), generate=True)
        return Prompt(example=example, text=text, token_ids=tuple(self._encode(text)))

    def completion_ids(self, example: Example, prompt: Prompt) -> tuple[int, ...]:
        """Token ids of the worked solution as the assistant's turn, ending with the end-of-turn token.

        Raises: RecipeError when the template renders a trained turn that the generation prompt does not begin.
        """
        if example.solution is None:
            raise RecipeError(f"example {example.id} has no solution to fine-tune on; map data.fields.solution")
        whole = self._render(
            [*self.messages(example), {"role": "assistant", "content": example.solution}], generate=False
        )
        if not whole.startswith(prompt.text):
            raise RecipeError(
                "the chat template renders a finished turn that does not start with its generation prompt:\n"
                f"  prompt:   {prompt.text[-80:]!r}\n  finished: {whole[len(prompt.text) - 80 :][:160]!r}"
            )
        turn = whole[len(prompt.text) :]
        end = self.tokenizer.eos_token
        turn = turn[: turn.rindex(end)] if end in turn else turn
        return (*self._encode(turn), self.tokenizer.eos_token_id)

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

    def _render(self, messages: list[dict[str, str]], *, generate: bool) -> str:
        return render(self.tokenizer, messages, generate=generate, thinking=self.data.thinking)

    def _encode(self, text: str) -> list[int]:
        # The template already wrote every special token; adding them again is the double-BOS fault.
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])


def fill(template: str, values: Mapping[str, str]) -> str:
    """Replace ``{name}`` for the given names, each once and never inside what was put in; other braces stay."""
    return _PLACEHOLDER.sub(lambda found: values.get(found[1], found[0]), template)


def render(tokenizer: Any, messages: list[dict[str, str]], *, generate: bool, thinking: bool | None) -> str:
    """Messages as text by the tokenizer's chat template; ``thinking`` is its ``enable_thinking`` where given."""
    options = {} if thinking is None else {"enable_thinking": thinking}
    return str(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=generate, **options))


def check_thinking(tokenizer: Any, thinking: bool | None, *, where: str) -> None:
    """A switch that cannot act is an error. Raises: RecipeError when the template never reads ``enable_thinking``."""
    if thinking is not None and "enable_thinking" not in str(tokenizer.chat_template):
        raise RecipeError(
            f"{where}: {thinking}, but the tokenizer's chat template has no enable_thinking; leave it out"
        )
