"""The one place where a chat template is applied. Engines receive token ids, never text."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from rlkd.errors import RecipeError
from rlkd.recipe.schema import DataSpec
from rlkd.records import Example, Prompt


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

    def prompt(self, example: Example) -> Prompt:
        """Render and tokenize the generation prompt of one example."""
        text = self._render(self._messages(example), generate=True)
        return Prompt(example=example, text=text, token_ids=tuple(self._encode(text)))

    def completion_ids(self, example: Example, prompt: Prompt) -> tuple[int, ...]:
        """Token ids of the worked solution as the assistant's turn, ending with the end-of-turn token.

        Raises: RecipeError when the template renders a trained turn that the generation prompt does not begin.
        """
        if example.solution is None:
            raise RecipeError(f"example {example.id} has no solution to fine-tune on; map data.fields.solution")
        whole = self._render(
            [*self._messages(example), {"role": "assistant", "content": example.solution}], generate=False
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

    def _messages(self, example: Example) -> list[dict[str, str]]:
        user = self.data.prompt.replace("{question}", example.question)
        for name, value in example.fields.items():
            if isinstance(value, str):
                user = user.replace(f"{{{name}}}", value)
        system = [{"role": "system", "content": self.data.system}] if self.data.system else []
        return [*system, {"role": "user", "content": user}]

    def _render(self, messages: list[dict[str, str]], *, generate: bool) -> str:
        return str(self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=generate))

    def _encode(self, text: str) -> list[int]:
        # The template already wrote every special token; adding them again is the double-BOS fault.
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])
