"""What each token is in UTF-8, also where it is but a part of a character."""

import json
import re
from typing import Any

from tokenizers import Tokenizer

_BYTE = re.compile(r"<0x([0-9A-Fa-f]{2})>")
_KNOWN = {"ByteLevel", "ByteFallback", "Replace", "Metaspace", "Fuse", "Strip"}
"""Decoders that turn a token into what it always is; the last two look at a text's ends."""


class TokenBytes:
    """The bytes of a tokenizer's tokens, without what a text has at its ends alone."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        """Read what `tokenizer` has; tokens that it gets later are unknown."""
        self._tokenizer = tokenizer
        added = tokenizer.get_added_tokens_decoder()
        self._added = {token: about.content.encode() for token, about in added.items()}
        steps = _steps(tokenizer)
        self._kinds = {step["type"] for step in steps}
        self._replaced = [found for step in steps if (found := _replaced(step))]

    def of(self, token: int) -> bytes:
        """Return the bytes of `token`; none if there is no such token."""
        if token in self._added:
            return self._added[token]
        piece = self._tokenizer.id_to_token(token)
        if piece is None:
            return b""
        if not self._kinds or self._kinds - _KNOWN:
            return str(self._tokenizer.decode([token], skip_special_tokens=False)).encode()
        if "ByteLevel" in self._kinds:
            found = [_BYTES.get(character) for character in piece]
            return bytes(byte for byte in found if byte is not None)
        if "ByteFallback" in self._kinds and (byte := _BYTE.fullmatch(piece)):
            return bytes.fromhex(byte[1])
        for old, new in self._replaced:
            piece = piece.replace(old, new)
        return piece.encode()


def _steps(tokenizer: Tokenizer) -> list[dict[str, Any]]:
    """Return the decoders of `tokenizer`, as its file describes them."""
    if tokenizer.decoder is None:
        return []
    described: dict[str, Any] = json.loads(tokenizer.decoder.__getstate__())
    steps: list[dict[str, Any]] = described.get("decoders", [described])
    return steps


def _replaced(step: dict[str, Any]) -> tuple[str, str] | None:
    if step["type"] == "Metaspace":
        return step["replacement"], " "
    if step["type"] == "Replace" and "String" in step["pattern"]:
        return step["pattern"]["String"], step["content"]
    return None


def _byte_characters() -> list[str]:
    """Return the characters that stand for bytes in vocabularies of GPT-2 and after it.

    Those that can be seen stand for themselves, the others come in their order from 256 on.
    """
    seen = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), 256)]
    unseen = [byte for byte in range(256) if byte not in seen]
    found = {byte: chr(byte) for byte in seen}
    found |= {byte: chr(256 + number) for number, byte in enumerate(unseen)}
    return [found[byte] for byte in range(256)]


BYTE_CHARACTERS = _byte_characters()
"""What stands for each byte."""
_BYTES = {character: byte for byte, character in enumerate(BYTE_CHARACTERS)}
