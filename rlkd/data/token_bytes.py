"""How many bytes of text each token stands for: exact offsets, which character offsets of split characters are not."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from rlkd.errors import TeacherError

ByteLength = Callable[[int], int]


def byte_length(tokenizer: Any, *, where: str) -> ByteLength:
    """A function from token id to bytes; 0 for special tokens.

    Raises: TeacherError for a tokenizer whose tokens don't spell their bytes (sentencepiece marks, word pieces).
    """
    special = set(tokenizer.all_special_ids)
    kind = type(tokenizer.backend_tokenizer.decoder).__name__
    if kind not in ("ByteLevel", "Fuse"):
        raise TeacherError(
            f"{where}: its tokenizer ({kind} decoder) is not byte-level or per character, so its tokens cannot be laid "
            "over another tokenizer's; use a byte-level BPE model (Llama 3, Qwen, SmolLM, GPT-2, ...)"
        )

    def of(token: int) -> int:
        if token in special:
            return 0
        text = str(tokenizer.convert_ids_to_tokens(token))
        return len(text) if kind == "ByteLevel" else len(text.encode("utf-8"))  # byte-level: one symbol a byte

    return of


_SPACES = " \n\t\r"
_BYTE_LEVEL_SPACES = "\u0120\u010a\u0109\u010d"  # how byte-level vocabularies write them


def starts_pretoken(tokenizer: Any) -> list[bool]:
    """By token id: whether a token begins with white space or ends the text, so that what stands before it is whole."""
    byte_level = type(tokenizer.backend_tokenizer.decoder).__name__ == "ByteLevel"
    marks = tuple(_BYTE_LEVEL_SPACES if byte_level else _SPACES)
    found = [False] * (max(tokenizer.get_vocab().values()) + 1)
    for text, token in tokenizer.get_vocab().items():
        found[token] = text.startswith(marks) or token == tokenizer.eos_token_id
    return found
