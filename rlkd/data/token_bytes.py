"""The bytes of text that each token stands for: exact offsets, which character offsets of split characters are not."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from rlkd.errors import TeacherError

TokenBytes = Callable[[int], bytes]


def token_bytes(tokenizer: Any, *, where: str) -> TokenBytes:
    """A function from token id to bytes; none for special tokens.

    Raises: TeacherError for a tokenizer whose tokens don't spell their bytes (sentencepiece marks, word pieces).
    """
    special, added = set(tokenizer.all_special_ids), set(tokenizer.get_added_vocab().values())
    kind = type(tokenizer.backend_tokenizer.decoder).__name__
    if kind not in ("ByteLevel", "Fuse"):
        raise TeacherError(
            f"{where}: its tokenizer ({kind} decoder) is not byte-level or per character, so its tokens cannot be laid "
            "over another tokenizer's; use a byte-level BPE model (Llama 3, Qwen, SmolLM, GPT-2, ...)"
        )

    def of(token: int) -> bytes:
        if token in special:
            return b""
        text = str(tokenizer.convert_ids_to_tokens(token))
        if kind == "ByteLevel" and token not in added:  # added tokens are spelled as they are
            return b"".join(BYTES.get(symbol, symbol.encode("utf-8")) for symbol in text)
        return text.encode("utf-8")

    return of


def _bytes() -> dict[str, bytes]:
    """Byte-level vocabularies spell a byte by its Latin-1 character where that can be seen, else by one from U+0100."""
    seen = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    unseen = [byte for byte in range(0x100) if byte not in seen]
    spelled = [(byte, byte) for byte in seen] + [(0x100 + at, byte) for at, byte in enumerate(unseen)]
    return {chr(symbol): bytes([byte]) for symbol, byte in spelled}


BYTES = _bytes()  # by symbol of a byte-level vocabulary

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
