"""A place in a list of tokens, and the unit that may end it."""

from __future__ import annotations

import re

from reward.math.lexer import Token
from reward.math.nodes import UnparsedError

MAX_UNIT_WORDS = 8
# Words behind a value that say more than a unit does: an alternative, a doubt, a second value.
_NO_UNIT = re.compile(
    r"\b(?:or|and|not|if|else|either|maybe|perhaps|possibly|approximately|about|roughly|to|is|are|but|no|yes|true|false|"
    r"wrong|correct|then|otherwise|mod|modulo|base|times|plus|minus|squared|cubed|when|for|where|with|guess|think|believe|"
    r"sure|unsure|likely|uncertain|hope|hopefully|ish|или|oder|ou)\b"
    r"|[不非错錯误誤否没沒或和与與及约約多]|以上|以下|左右|大于|小于|ない|または|아니|이상|이하|또는"
    r"|(?<![\^\w{])(?<![\^{]-) ?\d",
    re.IGNORECASE,
)


class Cursor:
    """Looks at, takes and counts tokens."""

    def __init__(self, tokens: list[Token]) -> None:
        self._tokens, self._here = list(tokens), 0
        self._bars = 0  # absolute values that are open

    def _peek(self, ahead: int = 0) -> Token | None:
        index = self._here + ahead
        return self._tokens[index] if index < len(self._tokens) else None

    def _is(self, *texts: str) -> bool:
        token = self._peek()
        return token is not None and token.kind in ("op", "cmd") and token.text in texts

    def _take(self, *texts: str) -> Token:
        token = self._peek()
        if token is None or (texts and not self._is(*texts)):
            raise UnparsedError(f"expected {' or '.join(texts) or 'more'}, got {token.text if token else 'the end'!r}")
        self._here += 1
        return token

    def _unit(self) -> str:
        """Text after a value: ``\\text{ cm}^2``, ``m/s`` in text, a counter word. Empty when there is none."""
        token = self._peek()
        if token is None or token.kind != "text":
            return ""
        parts: list[str] = []
        while (token := self._peek()) is not None:
            if token.kind in ("text", "sym", "num") or token.text in ("^", "/", "*", "{", "}", "-", "(", ")"):
                parts.append(token.text)
                self._here += 1
            else:
                raise UnparsedError(f"unit followed by {token.text!r}")
        unit = re.sub(r"\s*([\^/*{}()-])\s*", r"\1", " ".join(parts))
        if _NO_UNIT.search(unit) or len(unit.split()) > MAX_UNIT_WORDS:
            raise UnparsedError(f"{unit!r} after a value is no unit")
        return unit
