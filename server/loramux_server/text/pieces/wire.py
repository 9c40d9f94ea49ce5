"""Parser for SentencePiece models. Format: sentencepiece_model.proto of google/sentencepiece."""

import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_PIECES, _TRAINER, _NORMALIZER, _DENORMALIZER = 1, 2, 3, 5
_UNIGRAM, _BPE = 1, 2
_NORMAL, _USER_DEFINED, _UNUSED, _BYTE = 1, 4, 5, 6
_REFUSED = {
    _USER_DEFINED: "user-defined symbols",
    _UNUSED: "unused pieces",
    _BYTE: "byte pieces",
}


@dataclass(frozen=True, slots=True)
class SentencePieces:
    """The parts of a SentencePiece model that encoding needs."""

    scores: Mapping[str, float]
    """Piece -> score, without control tokens."""
    merges: bool
    """Whether pieces are merged by score (BPE); else the best total score wins (Unigram)."""
    rules: str
    """Name of the normalization rules, such as `nmt_nfkc`."""
    charsmap: bytes
    """The rules, in SentencePiece's own format; empty for none."""
    adds_prefix: bool
    """Whether a space is put before a text."""
    drops_spaces: bool
    """Whether spaces at the ends, and repeated ones, are dropped."""


def read_sentence_pieces(data: bytes, name: str) -> SentencePieces:
    """Parse the content `data` of the file called `name`.

    Raises:
        ValueError: It is malformed, or uses features that only SentencePiece itself supports.
    """
    try:
        return _read(data)
    except (IndexError, TypeError, UnicodeDecodeError, struct.error):
        raise ValueError(f"{name} is not a SentencePiece model") from None
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from None


def _read(data: bytes) -> SentencePieces:
    parts: dict[int, dict[int, int | bytes]] = {}
    scores = {}
    for number, value in _fields(data):
        if number == _PIECES:
            piece = dict(_fields(_bytes(value)))
            kind = piece.get(3, _NORMAL)
            text = _bytes(piece[1]).decode() if 1 in piece else ""
            if kind in _REFUSED:
                raise ValueError(f"{_REFUSED[kind]}, such as {text!r}, are not supported")
            if kind == _NORMAL:
                scores[text] = float(struct.unpack("<f", _bytes(piece.get(2, bytes(4))))[0])
        elif number in (_TRAINER, _NORMALIZER, _DENORMALIZER):
            parts[number] = dict(_fields(_bytes(value)))
    trainer, normalizer = parts.get(_TRAINER, {}), parts.get(_NORMALIZER, {})
    kind = trainer.get(3, _UNIGRAM)
    if not scores:
        raise ValueError("the model has no pieces")
    if kind not in (_UNIGRAM, _BPE):
        raise ValueError(f"model_type is {kind!r}; expected 1 (Unigram) or 2 (BPE)")
    if trainer.get(24):
        raise ValueError("treat_whitespace_as_suffix is not supported")
    if not normalizer.get(5, 1):
        raise ValueError("escape_whitespaces=false is not supported")
    if parts.get(_DENORMALIZER, {}).get(2):
        raise ValueError("denormalization of decoded text (denormalizer_spec) is not supported")
    return SentencePieces(
        scores,
        merges=kind == _BPE,
        rules=_bytes(normalizer.get(1, b"")).decode(),
        charsmap=_bytes(normalizer.get(2, b"")),
        adds_prefix=bool(normalizer.get(3, 1)),
        drops_spaces=bool(normalizer.get(4, 1)),
    )


def _bytes(value: int | bytes) -> bytes:
    if isinstance(value, int):
        raise TypeError
    return value


def _fields(data: bytes) -> Iterator[tuple[int, int | bytes]]:
    """Yield the number and the value of each field of a message: an integer, or its bytes."""
    at = 0
    while at < len(data):
        tag, at = _varint(data, at)
        kind = tag & 7
        if kind == _VARINT:
            value, at = _varint(data, at)
            yield tag >> 3, value
            continue
        if kind == _BYTES:
            size, at = _varint(data, at)
        elif kind in (_FIXED64, _FIXED32):
            size = 8 if kind == _FIXED64 else 4
        else:
            raise TypeError
        if at + size > len(data):
            raise IndexError
        yield tag >> 3, data[at : at + size]
        at += size


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        value |= (byte & 0x7F) << shift
        at += 1
        if byte < 0x80:
            return value, at
        shift += 7
