"""Does a chat template train what it should? Double BOS, EOS in the labels, round trips, lost reasoning.

Every check names its fault instead of repairing it: a silent repair makes training and serving differ.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, cast

from rlkd.data.chat import render


class ChatTokenizer(Protocol):
    """The part of a Hugging Face tokenizer that the checks use."""

    bos_token_id: int | None
    eos_token_id: int | None
    eos_token: Any
    pad_token_id: int | None
    chat_template: Any

    def apply_chat_template(self, conversation: Any, *, tokenize: bool, add_generation_prompt: bool) -> Any: ...
    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]: ...
    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool) -> Any: ...


@dataclass(frozen=True)
class TemplateFault:
    """A fault of a tokenizer and template, with the text that shows it."""

    kind: str
    detail: str


def template_faults(tokenizer: ChatTokenizer) -> list[TemplateFault]:
    """Faults of the tokenizer and its chat template that do not depend on the data."""
    if not tokenizer.chat_template:
        return [TemplateFault("no_template", "the tokenizer has no chat template")]
    faults = [*_special_token_faults(tokenizer), *_generation_prompt_faults(tokenizer)]
    return [*faults, *_double_bos_faults(tokenizer), *_history_faults(tokenizer), *_reasoning_faults(tokenizer)]


def inner_end_fault(answer_ids: Sequence[int], eos_id: int) -> TemplateFault | None:
    """An end-of-turn token before the last one: text after it is trained, but no sampling ever gets there."""
    at = answer_ids.index(eos_id)
    if at == len(answer_ids) - 1:
        return None
    return TemplateFault("end_of_turn_inside", f"token {at} of {len(answer_ids)} already is EOS ({eos_id})")


def round_trip_fault(tokenizer: ChatTokenizer, text: str) -> TemplateFault | None:
    """ids -> text -> ids must give the ids again, or training sees other tokens than sampling made."""
    ids = tokenizer.encode(text, add_special_tokens=False)
    decoded = cast(str, tokenizer.decode(ids, skip_special_tokens=False))
    again = tokenizer.encode(decoded, add_special_tokens=False)
    if ids == again:
        return None
    at = next((i for i, (a, b) in enumerate(zip(ids, again, strict=False)) if a != b), min(len(ids), len(again)))
    return TemplateFault(
        "round_trip", f"token {at} of {len(ids)}: {ids[at : at + 4]} came back as {again[at : at + 4]}"
    )


def bos_count(ids: Sequence[int], bos_id: int | None) -> int:
    """How many of the first two tokens are BOS."""
    return 0 if bos_id is None else sum(token == bos_id for token in ids[:2])


_USER = {"role": "user", "content": "What is 2 + 3?"}
_ANSWER = {"role": "assistant", "content": "The answer is 5."}
_NEXT = {"role": "user", "content": "And 3 + 4?"}


def _special_token_faults(tokenizer: ChatTokenizer) -> Iterable[TemplateFault]:
    if tokenizer.eos_token_id is None:
        yield TemplateFault("no_eos", "the tokenizer has no EOS token: the model cannot learn to stop")
    elif tokenizer.pad_token_id == tokenizer.eos_token_id:
        yield TemplateFault("pad_is_eos", "pad is EOS: labels masked by id lose EOS; rlkd masks by position")
    after = render(tokenizer, [_USER, _ANSWER], generate=False).rpartition(_ANSWER["content"])[2]
    if tokenizer.eos_token_id is not None and tokenizer.eos_token not in after:
        yield TemplateFault(
            "eos_not_written", f"a finished turn ends {after[-30:]!r}, without EOS {tokenizer.eos_token}"
        )


def _generation_prompt_faults(tokenizer: ChatTokenizer) -> Iterable[TemplateFault]:
    without = render(tokenizer, [_USER], generate=False)
    prompt = render(tokenizer, [_USER], generate=True)
    if prompt == without:
        yield TemplateFault(
            "no_generation_prompt", "add_generation_prompt changes nothing: the model starts unprompted"
        )
    full = render(tokenizer, [_USER, _ANSWER], generate=False)
    if not full.startswith(prompt):
        yield TemplateFault(
            "prompt_not_prefix",
            f"the prompt ends {prompt[-30:]!r}; the training text goes on {full[len(without) :][:40]!r}",
        )


def _double_bos_faults(tokenizer: ChatTokenizer) -> Iterable[TemplateFault]:
    text = render(tokenizer, [_USER], generate=True)
    if bos_count(tokenizer.encode(text, add_special_tokens=True), tokenizer.bos_token_id) > 1:
        yield TemplateFault(
            "double_bos", "template and tokenizer both write BOS; encode rendered text with add_special_tokens=False"
        )


def _history_faults(tokenizer: ChatTokenizer) -> Iterable[TemplateFault]:
    """The rendering of earlier turns must not change when turns are added."""
    thoughtful = {"role": "assistant", "content": f"<think>\nTwo and three.\n</think>\n\n{_ANSWER['content']}"}
    first = render(tokenizer, [_USER, thoughtful], generate=False)
    longer = render(tokenizer, [_USER, thoughtful, _NEXT], generate=False)
    if not longer.startswith(first.rstrip()):
        yield TemplateFault("history_rewritten", "an earlier turn renders differently once a turn follows it")


def _reasoning_faults(tokenizer: ChatTokenizer) -> Iterable[TemplateFault]:
    reasoning = "Two and three make five."
    turn = {"role": "assistant", "content": f"<think>\n{reasoning}\n</think>\n\n{_ANSWER['content']}"}
    if reasoning not in render(tokenizer, [_USER, turn], generate=False):
        yield TemplateFault("reasoning_stripped", "the template removes <think>...</think>: reasoning is never trained")
