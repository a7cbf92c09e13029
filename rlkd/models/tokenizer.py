"""Tokenizers for models that start from scratch: characters, or byte-level BPE trained on the recipe's own text."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from rlkd.recipe.models import BpeTokenizer, CharTokenizer

PAD, END, USER, ASSISTANT, SYSTEM, UNKNOWN = "<|pad|>", "<|end|>", "<|user|>", "<|assistant|>", "<|system|>", "<|unk|>"
SPECIAL = (PAD, END, USER, ASSISTANT, SYSTEM, UNKNOWN)

CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<|' + message['role'] + '|>' + message['content'] }}"
    "{% if message['role'] == 'assistant' %}{{ '<|end|>' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)


def build_tokenizer(spec: CharTokenizer | BpeTokenizer, texts: Iterable[str], context_length: int) -> Any:
    """Return a fast transformers tokenizer with pad, end-of-turn and role tokens and a chat template.

    Args:
        spec: the recipe's tokenizer section.
        texts: training text of a BPE tokenizer; not read for characters.
        context_length: written into the tokenizer as ``model_max_length``.
    """
    from transformers import PreTrainedTokenizerFast

    core = _char_core(spec) if isinstance(spec, CharTokenizer) else _bpe_core(spec, texts)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token=PAD,
        eos_token=END,
        unk_token=UNKNOWN,
        extra_special_tokens=[USER, ASSISTANT, SYSTEM],
        model_max_length=context_length,
        clean_up_tokenization_spaces=False,
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def _char_core(spec: CharTokenizer) -> Any:
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers

    alphabet = list(dict.fromkeys(spec.alphabet))
    vocabulary = {token: index for index, token in enumerate([*SPECIAL, *alphabet])}
    core = Tokenizer(models.WordLevel(vocabulary, unk_token=UNKNOWN))
    core.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), behavior="isolated")
    core.decoder = decoders.Fuse()
    return core


def _bpe_core(spec: BpeTokenizer, texts: Iterable[str]) -> Any:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.Punctuation(behavior="isolated"),  # "=-4" is a sign, not a word
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=spec.vocab_size,
        special_tokens=list(SPECIAL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    core.train_from_iterator(texts, trainer)
    return core
