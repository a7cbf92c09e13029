"""Template faults: each is planted in a real tokenizer and must be named; a sound template has none."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from rlkd.data.chat import encode_answer, render
from rlkd.data.template import bos_count, inner_end_fault, round_trip_fault, template_faults
from rlkd.errors import RecipeError

SOUND = (
    "{{ bos_token }}{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
PROMPT = [{"role": "user", "content": "What is 2 + 3?"}]


def make(template: str | None = SOUND, *, adds_bos: bool = False, lower: bool = False, **special: Any) -> Any:
    """A byte-level tokenizer; ``adds_bos`` writes BOS itself, ``lower`` loses case."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    core = Tokenizer(models.BPE(vocab={letter: at for at, letter in enumerate(alphabet)}, merges=[]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    if lower:
        core.normalizer = normalizers.Lowercase()
    names = {"bos_token": "<s>", "eos_token": "<|end|>", "pad_token": "<pad>"} | special
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core,
        extra_special_tokens=["<|user|>", "<|assistant|>"],
        **{key: value for key, value in names.items() if value is not None},
    )
    if adds_bos:
        bos = tokenizer.bos_token_id
        tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
            single="<s> $A", special_tokens=[("<s>", bos)]
        )
    tokenizer.chat_template = template
    return tokenizer


def kinds(tokenizer: Any) -> set[str]:
    return {fault.kind for fault in template_faults(tokenizer)}


def test_a_sound_template_has_no_fault() -> None:
    assert kinds(make()) == set()


QWEN3_LIKE = SOUND.replace(
    "{{ m['content'] }}",
    "{% if loop.last %}{{ m['content'] }}{% else %}{{ m['content'].split('</think>')[-1].lstrip('\\n') }}{% endif %}",
)
R1_LIKE = SOUND.replace("{{ m['content'] }}", "{{ m['content'].split('</think>')[-1] }}")
PREFILLED = SOUND.replace("<|assistant|>{% endif %}", "<|assistant|><think>\n{% endif %}")
FAULTY = {
    "no_template": lambda: make(None),
    "no_generation_prompt": lambda: make(SOUND.split("{% if add")[0]),
    "double_bos": lambda: make(adds_bos=True),
    "pad_is_eos": lambda: make(pad_token="<|end|>"),
    "no_eos": lambda: make(eos_token=None),
    "history_rewritten": lambda: make(QWEN3_LIKE),
    "reasoning_stripped": lambda: make(R1_LIKE),
    "prompt_not_prefix": lambda: make(PREFILLED),
    "eos_not_written": lambda: make(eos_token="<|stop|>"),  # as Llama 3's base tokenizer with the chat template
}


@pytest.mark.parametrize("kind", FAULTY)
def test_planted_fault_is_named(kind: str) -> None:
    assert kind in kinds(FAULTY[kind]())


def answer_ids(tokenizer: Any, answer: str) -> tuple[int, ...]:
    return encode_answer(tokenizer, PROMPT, answer, prompt=render(tokenizer, PROMPT, generate=True))


def test_what_is_trained_is_the_turn_and_its_end() -> None:
    after = SOUND.replace("<|end|>", "<|end|>\n")  # what follows EOS is the next turn's
    for tokenizer in (make(), make(pad_token="<|end|>"), make(after)):  # pad = EOS must not change it
        turn = tokenizer.encode("It is 5.", add_special_tokens=False)
        assert list(answer_ids(tokenizer, "It is 5.")) == [*turn, tokenizer.eos_token_id]


def test_an_end_of_turn_inside_an_answer_is_a_fault() -> None:
    tokenizer = make()
    whole, broken = answer_ids(tokenizer, "It is 5."), answer_ids(tokenizer, "It<|end|> is 5.")
    assert inner_end_fault(whole, tokenizer.eos_token_id) is None
    fault = inner_end_fault(broken, tokenizer.eos_token_id)
    assert fault is not None and fault.detail == f"token 2 of 10 already is EOS ({tokenizer.eos_token_id})"


def test_a_prefilled_template_trains_only_answers_that_begin_so() -> None:
    tokenizer = make(PREFILLED)
    found = tokenizer.decode(answer_ids(tokenizer, "<think>\nTwo.</think>5"))
    assert found == "Two.</think>5<|end|>"
    with pytest.raises(RecipeError, match="does not start with its generation prompt"):
        answer_ids(tokenizer, "5")


def test_a_double_bos_is_counted() -> None:
    tokenizer = make(adds_bos=True)
    text = render(tokenizer, PROMPT, generate=True)
    assert bos_count(tokenizer.encode(text, add_special_tokens=True), tokenizer.bos_token_id) == 2
    assert bos_count(tokenizer.encode(text, add_special_tokens=False), tokenizer.bos_token_id) == 1


def test_round_trip() -> None:
    assert round_trip_fault(make(), "Ärger with 3 × 4 = 12 <|end|>") is None
    # a normaliser that loses case still gives the same ids again: the loss is not in the ids
    assert round_trip_fault(make(lower=True), "ABC") is None
    stripping = make()
    stripping.backend_tokenizer.decoder = decoders.Sequence([decoders.ByteLevel(), decoders.Strip(" ", 1, 0)])
    fault = round_trip_fault(stripping, " leading space")
    assert fault is not None and fault.kind == "round_trip"


def test_smollm2_has_a_sound_template(smollm2: Path) -> None:
    from rlkd.data.models import named_tokenizer

    tokenizer = named_tokenizer(str(smollm2), smollm2)
    assert kinds(tokenizer) == {"pad_is_eos"}
    assert tokenizer.decode(answer_ids(tokenizer, "It is 5.")) == "It is 5.<|im_end|>"
