"""Tokens one by one are together the text, down to parts of characters."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from loramux_server.text.token_bytes import TokenBytes
from tests.support.models import byte_tokenizer

BYTES: Tokenizer = byte_tokenizer().backend_tokenizer
WORDS = ["\u2581", "\u2581hello", "h", "e", "l", "o", "!", "\u00e9"]


def with_fallback(decoder: decoders.Decoder) -> Tokenizer:
    """A tokenizer of words, with a token for each byte that is of none."""
    pieces = ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256)), *WORDS]
    model = models.BPE(
        vocab={piece: token for token, piece in enumerate(pieces)}, merges=[],
        byte_fallback=True, unk_token="<unk>",
    )  # fmt: skip
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never")
    tokenizer.decoder = decoder
    tokenizer.add_tokens([AddedToken("\u2581new", normalized=False)])
    return tokenizer


LLAMA = with_fallback(
    decoders.Sequence(
        [
            decoders.Replace("\u2581", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
)
META = with_fallback(
    decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace(), decoders.Fuse()])
)
TEXTS = st.text("helo !\u00e9\u20ac\U0001f600\n\x00", max_size=12)


@pytest.mark.parametrize("tokenizer", [BYTES, LLAMA, META], ids=["bytes", "llama", "metaspace"])
@given(text=TEXTS)
def test_tokens_of_a_text_are_its_bytes(tokenizer: Tokenizer, text: str) -> None:
    tokens = tokenizer.encode(text, add_special_tokens=False).ids
    assert b"".join(map(TokenBytes(tokenizer).of, tokens)) == text.encode()


def test_a_part_of_a_character_is_its_bytes() -> None:
    of = TokenBytes(BYTES).of
    found = [of(token) for token in BYTES.encode("\u20ac", add_special_tokens=False).ids]
    assert found == [b"\xe2", b"\x82", b"\xac"]


def test_added_tokens_are_what_they_are_written_as_and_others_are_nothing() -> None:
    of, new = TokenBytes(LLAMA).of, LLAMA.token_to_id("\u2581new")
    assert new is not None
    assert of(new) == "\u2581new".encode()
    assert of(new + 1) == b""
    assert TokenBytes(BYTES).of(1) == b"<s>"


def test_tokens_of_another_kind_are_what_they_decode_to_alone() -> None:
    tokenizer = Tokenizer(models.WordPiece({"[UNK]": 0, "play": 1, "##ing": 2}, unk_token="[UNK]"))
    tokenizer.decoder = decoders.WordPiece()
    of = TokenBytes(tokenizer).of
    assert [of(1), of(2)] == [tokenizer.decode([token]).encode() for token in (1, 2)]
    tokenizer.decoder = None
    assert TokenBytes(tokenizer).of(1) == b"play"
