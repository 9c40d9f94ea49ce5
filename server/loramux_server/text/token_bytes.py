"""The UTF-8 bytes of each token, even where it is only part of a character."""

import json
import re
from typing import Any

from tokenizers import Tokenizer

_BYTE = re.compile(r"<0x([0-9A-Fa-f]{2})>")
_KNOWN = {"ByteLevel", "ByteFallback", "Replace", "Metaspace", "Fuse", "Strip"}
"""Decoders that treat each token the same way everywhere, except that the last two also look at the
ends of a text."""


class TokenBytes:
    """The bytes of a tokenizer's tokens, regardless of their position in a text."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        """Read the decoders of `tokenizer`; tokens added to it later are unknown."""
        self._tokenizer = tokenizer
        added = tokenizer.get_added_tokens_decoder()
        self._added = {token: about.content.encode() for token, about in added.items()}
        steps = _steps(tokenizer)
        self._kinds = {step["type"] for step in steps}
        self._replaced = [found for step in steps if (found := _replaced(step))]

    def of(self, token: int) -> bytes:
        """Return the bytes of `token`; empty if there is no such token."""
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
    """Return the decoder steps of `tokenizer`, as in tokenizer.json."""
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
    """Return the characters that stand for bytes in byte-level BPE vocabularies, as in GPT-2.

    Printable characters stand for themselves, the other bytes map in order to 256 and up.
    """
    seen = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), 256)]
    unseen = [byte for byte in range(256) if byte not in seen]
    found = {byte: chr(byte) for byte in seen}
    found |= {byte: chr(256 + number) for number, byte in enumerate(unseen)}
    return [found[byte] for byte in range(256)]


BYTE_CHARACTERS = _byte_characters()
"""The character that stands for each byte."""
_BYTES = {character: byte for byte, character in enumerate(BYTE_CHARACTERS)}
