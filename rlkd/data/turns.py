"""A second turn from the tokens of the first: nothing that was sampled is ever decoded and encoded again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rlkd.data.chat import encode, render
from rlkd.data.prompt import PromptBuilder, fill
from rlkd.errors import RecipeError
from rlkd.recipe.privileged import FeedbackSpec
from rlkd.records import Example, Prompt

_MARK = "ATTEMPT"


@dataclass(frozen=True)
class TurnBuilder:
    """First prompt + sampled answer + the user's turn with feedback, as token ids; and the critic's own prompt."""

    builder: PromptBuilder
    spec: FeedbackSpec

    def second_prompt(self, prompt: Prompt, completion_ids: Sequence[int], feedback: str) -> tuple[int, ...]:
        """What the second answer continues.

        Raises: RecipeError when the chat template renders the first turn differently once a turn follows it, or
            writes nothing after it.
        """
        bridge = self._bridge(prompt, feedback)
        end = self.builder.tokenizer.eos_token
        if completion_ids and completion_ids[-1] == self.builder.tokenizer.eos_token_id:
            bridge = bridge.removeprefix(end)  # sampled already; after a cut answer the template's stays
        added = self.encode(bridge)
        if not added:
            raise RecipeError("the chat template writes nothing between a first answer and a second")
        return (*prompt.token_ids, *completion_ids, *added)

    def _bridge(self, prompt: Prompt, feedback: str) -> str:
        """What the template writes between the first answer and the second."""
        messages = [
            *self.builder.messages(prompt.example),
            {"role": "assistant", "content": _MARK},
            {"role": "user", "content": fill(self.spec.revise, {"feedback": feedback})},
        ]
        whole = render(self.builder.tokenizer, messages, generate=True, thinking=self.builder.data.thinking)
        start = prompt.text + _MARK
        if not whole.startswith(start):
            found = whole[: len(start)]
            raise RecipeError(
                "the chat template renders an earlier turn differently once a turn follows it, so that a second turn "
                f"cannot continue the sampled tokens:\n  expected: {start[-80:]!r}\n  rendered: {found[-80:]!r}"
            )
        return whole[len(start) :]

    def critique(self, example: Example, attempt: str, feedback: str) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """The critic's prompt, and the feedback as its answer."""
        return self.critic_prompt(example, attempt), (*self.encode(feedback), self.builder.tokenizer.eos_token_id)

    def critic_prompt(self, example: Example, attempt: str) -> tuple[int, ...]:
        """The prompt from which the feedback on an attempt is predicted."""
        text = fill(self.spec.critic, {"question": example.question, "attempt": attempt})
        messages = [{"role": "user", "content": text}]
        shown = render(self.builder.tokenizer, messages, generate=True, thinking=self.builder.data.thinking)
        return tuple(self.encode(shown))

    def fit(self, feedback: str) -> tuple[str, bool]:
        """Feedback of at most ``max_tokens``, and whether it was cut."""
        ids = self.encode(feedback)
        if len(ids) <= self.spec.max_tokens:
            return feedback, False
        return str(self.builder.tokenizer.decode(ids[: self.spec.max_tokens], skip_special_tokens=True)), True

    def encode(self, text: str) -> list[int]:
        """Token ids without any that the template did not write."""
        return encode(self.builder.tokenizer, text)
