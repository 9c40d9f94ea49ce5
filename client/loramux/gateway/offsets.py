"""Where tokens begin in a text, in characters: OpenAI's `text_offset`."""

import codecs
from collections.abc import Iterable, Iterator

from loramux.v1 import generation_pb2


class TextOffsets:
    """Offsets of consecutive tokens, each of which may hold only part of a UTF-8 character."""

    def __init__(self, start: int = 0) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._place = start

    def of(self, tokens: Iterable[generation_pb2.TokenLogprob]) -> list[int]:
        """Return where each of the next `tokens` begins."""
        found = []
        for token in tokens:
            found.append(self._place)
            self._place += len(self._decoder.decode(token.utf8))
        return found


def offsets_in(text: str, tokens: Iterable[generation_pb2.TokenLogprob]) -> list[int]:
    """Return where each of `tokens` begins in `text`, from which the server tokenized them.

    Tokens that the tokenizer added before or after the text, such as `<s>` or a space, take up no
    characters of it.
    """
    raw = text.encode("utf-8", "surrogatepass")
    return _characters(raw, _places(raw, _utf8(tokens)))


def _places(raw: bytes, tokens: Iterable[bytes]) -> list[int]:
    """Return the byte of `raw` at which each of `tokens` begins."""
    found, place = [], 0
    for token in tokens:
        found.append(place)
        if not place and not raw.startswith(token):
            # A leading space that the tokenizer added, or a special token before the text.
            inner = token.removeprefix(b" ")
            place = len(inner) if raw.startswith(inner) else 0
        else:
            place = min(place + len(token), len(raw))
    return found


def _characters(raw: bytes, begins: Iterable[int]) -> list[int]:
    """Return the number of complete characters of `raw` before each byte offset in `begins`."""
    found, last, count = [], 0, 0
    for begin in begins:
        count += _num_characters(raw[last:begin])
        last = begin
        is_inside = begin < len(raw) and raw[begin] & 0xC0 == 0x80
        found.append(count - is_inside)
    return found


def _num_characters(part: bytes) -> int:
    return sum(byte & 0xC0 != 0x80 for byte in part)


def joined(tokens: Iterable[generation_pb2.TokenLogprob]) -> str:
    """Return the text of `tokens`."""
    return b"".join(_utf8(tokens)).decode("utf-8", "replace")


def _utf8(tokens: Iterable[generation_pb2.TokenLogprob]) -> Iterator[bytes]:
    for token in tokens:
        yield token.utf8
