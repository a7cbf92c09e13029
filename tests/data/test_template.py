"""Template faults: each is planted in a real tokenizer and must be named; a sound template has none."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from rlkd.data.template import (
    bos_count,
    encode_pair,
    label_faults,
    render_chat,
    round_trip_fault,
    template_faults,
)

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
}


@pytest.mark.parametrize("kind", FAULTY)
def test_planted_fault_is_named(kind: str) -> None:
    assert kind in kinds(FAULTY[kind]())


def test_the_trained_part_is_set_by_position_and_ends_in_eos() -> None:
    for tokenizer in (make(), make(pad_token="<|end|>")):  # pad = EOS must not change it
        pair = encode_pair(tokenizer, PROMPT, "It is 5.")
        before = tokenizer.encode(render_chat(tokenizer, PROMPT, generation_prompt=True), add_special_tokens=False)
        turn = tokenizer.encode("It is 5.", add_special_tokens=False)
        assert list(pair.ids) == [*before, *turn, tokenizer.eos_token_id]
        assert list(pair.response_mask) == [False] * len(before) + [True] * (len(turn) + 1)
        assert label_faults(pair.ids, pair.response_mask, tokenizer.eos_token_id) == []
        assert bos_count(pair.ids, tokenizer.bos_token_id) == 1


def test_masking_pad_by_id_is_caught() -> None:
    """What trainers did that masked labels where id == pad, with pad = EOS: EOS was never trained."""
    tokenizer = make(pad_token="<|end|>")
    pair = encode_pair(tokenizer, PROMPT, "It is 5.")
    by_id = [on and token != tokenizer.pad_token_id for token, on in zip(pair.ids, pair.response_mask, strict=True)]
    assert [fault.kind for fault in label_faults(pair.ids, by_id, tokenizer.eos_token_id)] == ["eos_not_trained"]
    assert [f.kind for f in label_faults(pair.ids, [False] * len(pair.ids), 1)] == ["nothing_trained"]
    assert [f.kind for f in label_faults(pair.ids, pair.response_mask, None)] == ["no_eos"]


def test_a_double_bos_is_counted() -> None:
    tokenizer = make(adds_bos=True)
    text = render_chat(tokenizer, PROMPT, generation_prompt=True)
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
    pair = encode_pair(tokenizer, PROMPT, "It is 5.")
    assert label_faults(pair.ids, pair.response_mask, tokenizer.eos_token_id) == []
