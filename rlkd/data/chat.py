"""The one place where a chat template is applied. Engines receive token ids, never text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rlkd.errors import RecipeError

Messages = Sequence[dict[str, str]]


def render(tokenizer: Any, messages: Messages, *, generate: bool, thinking: bool | None = None) -> str:
    """Messages as text by the tokenizer's chat template; ``thinking`` is its ``enable_thinking`` where given."""
    options = {} if thinking is None else {"enable_thinking": thinking}
    return str(tokenizer.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=generate, **options))


def encode(tokenizer: Any, text: str) -> list[int]:
    """Token ids of rendered text: the template wrote every special token; adding them again is the double-BOS fault."""
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


def encode_answer(
    tokenizer: Any, messages: Messages, answer: str, *, prompt: str, thinking: bool | None = None
) -> tuple[int, ...]:
    """Token ids that are trained after ``prompt``, the rendered messages: the assistant's turn and its end.

    What the template writes after the end-of-turn token belongs to the next turn and is cut.
    Raises: RecipeError when the template renders a finished turn that the generation prompt does not begin.
    """
    turn = {"role": "assistant", "content": answer}
    whole = render(tokenizer, [*messages, turn], generate=False, thinking=thinking)
    if not whole.startswith(prompt):
        raise RecipeError(
            "the chat template renders a finished turn that does not start with its generation prompt:\n"
            f"  prompt:   {prompt[-80:]!r}\n  finished: {whole[max(0, len(prompt) - 80) :][:160]!r}"
        )
    text, end = whole[len(prompt) :], tokenizer.eos_token
    text = text[: text.rindex(end)] if end in text else text
    return (*encode(tokenizer, text), tokenizer.eos_token_id)


def check_thinking(tokenizer: Any, thinking: bool | None, *, where: str) -> None:
    """A switch that cannot act is an error. Raises: RecipeError when the template never reads ``enable_thinking``."""
    if thinking is not None and "enable_thinking" not in str(tokenizer.chat_template):
        raise RecipeError(
            f"{where}: {thinking}, but the tokenizer's chat template has no enable_thinking; leave it out"
        )
