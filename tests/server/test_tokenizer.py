"""Text to tokens, and tokens to text piece by piece."""

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from loramux.errors import InvalidArgumentError
from loramux_adapters.added_tokens import AddedToken
from loramux_server.text.tokenizer import MAX_UNBROKEN, TextTokenizer
from tests.support.models import byte_tokenizer

BYTES = byte_tokenizer().backend_tokenizer
SPECIALS = {"<pad>": 0, "<s>": 1, "</s>": 2}
NEW = AddedToken(BYTES.get_vocab_size(), "<new>", special=True)


@pytest.fixture(scope="module")
def tokenizer() -> TextTokenizer:
    return TextTokenizer(BYTES.to_str())


def token_of_each_byte() -> list[int]:
    """The tokens of the 256 bytes, in their order."""
    # The alphabet shows printable bytes as themselves and the others as what comes after.
    printable = {*range(33, 127), *range(161, 173), *range(174, 256)}
    others = iter(range(256, 512))
    shown = [chr(byte if byte in printable else next(others)) for byte in range(256)]
    vocabulary = BYTES.get_vocab()
    return [vocabulary[character] for character in shown]


TOKENS = token_of_each_byte()


def decoded(
    tokenizer: TextTokenizer, tokens: list[int], prompt: list[int], skip_special: bool = True
) -> str:
    decoder = tokenizer.decoder(prompt, skip_special=skip_special)
    return "".join(decoder.step(token) for token in tokens) + decoder.end()


def with_byte_fallback() -> TextTokenizer:
    """A tokenizer as those of the Llama and Gemma families: words, and bytes for what is none."""
    words = ["\u2581", "\u2581hello", "\u2581world", "h", "e", "l", "o", "!"]
    vocabulary = {
        word: token
        for token, word in enumerate(
            [*SPECIALS, *(f"<0x{byte:02X}>" for byte in range(256)), *words]
        )
    }
    tokenizer = Tokenizer(
        models.BPE(vocab=vocabulary, merges=[], byte_fallback=True, unk_token="<pad>")
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace("\u2581", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    tokenizer.add_special_tokens(list(SPECIALS))
    return TextTokenizer(tokenizer.to_str())


FALLBACK = with_byte_fallback()

byte_runs = st.one_of(
    st.binary(max_size=40),
    st.text(max_size=20).map(str.encode),
    # Bytes that are parts of characters, in any order.
    st.lists(st.sampled_from("a\u00e9\u20ac\U0001f600".encode()), max_size=40).map(bytes),
)


@given(output=byte_runs, prompt=byte_runs, data=st.data())
def test_pieces_are_the_whole_text(
    tokenizer: TextTokenizer, output: bytes, prompt: bytes, data: st.DataObject
) -> None:
    tokens = [TOKENS[byte] for byte in output]
    for _ in range(data.draw(st.integers(0, 3))):
        tokens.insert(data.draw(st.integers(0, len(tokens))), data.draw(st.integers(0, 2)))
    text = decoded(tokenizer, tokens, [1, *(TOKENS[byte] for byte in prompt)])
    assert text == output.decode("utf-8", "replace")


@given(text=st.text(min_size=1))
def test_text_comes_back_and_no_piece_splits_a_character(
    tokenizer: TextTokenizer, text: str
) -> None:
    tokens = tokenizer.encode(text, parse_special=False, add_special=False)
    decoder = tokenizer.decoder([1], skip_special=True)
    pieces = [decoder.step(token) for token in tokens]
    # U+FFFD itself looks like bytes that are not yet a character until something follows it.
    assert "".join(pieces) + decoder.end() == text
    if "\N{REPLACEMENT CHARACTER}" not in text:
        assert "\N{REPLACEMENT CHARACTER}" not in "".join(pieces)


@pytest.mark.parametrize("byte", [0x80, 0xFF, 0x41])
def test_a_token_costs_the_same_however_long_the_text_is(
    tokenizer: TextTokenizer, byte: int
) -> None:
    decoder = tokenizer.decoder([1], skip_special=True)
    begin = time.monotonic()
    for _ in range(20_000):
        decoder.step(TOKENS[byte])
    assert time.monotonic() - begin < 10  # 0.1 s; it took a minute when it grew with the text


def test_control_tokens_are_left_out_or_shown(tokenizer: TextTokenizer) -> None:
    tokens = [TOKENS[ord("a")], 2, 1, TOKENS[ord("b")]]
    assert decoded(tokenizer, tokens, [1]) == "ab"
    assert decoded(tokenizer, tokens, [1], skip_special=False) == "a</s><s>b"


def test_a_character_goes_on_after_a_control_token_that_is_left_out(
    tokenizer: TextTokenizer,
) -> None:
    first, *rest = (TOKENS[byte] for byte in "\u20ac".encode())
    assert decoded(tokenizer, [first, *[2] * 20, *rest], [1]) == "\u20ac"


@pytest.mark.parametrize("cut_off", [b"", b"\xe2", b"\xe2\x82", b"\xff", b"\x80" * 9])
def test_text_of_the_prompt_never_comes_out(tokenizer: TextTokenizer, cut_off: bytes) -> None:
    prompt = [1, *(TOKENS[byte] for byte in b"prompt" + cut_off)]
    assert decoded(tokenizer, [TOKENS[byte] for byte in b"hello"], prompt) == "hello"


def test_words_keep_the_space_before_them() -> None:
    hello, world = 259 + 1, 259 + 2
    assert decoded(FALLBACK, [hello, world], [1]) == "hello world"
    assert decoded(FALLBACK, [world, hello], [1, hello]) == " world hello"
    # After control tokens a text still goes on.
    assert decoded(FALLBACK, [world], [1, hello, 2, 1]) == " world"


@given(text=st.text("a\u00e9\u20ac\U0001f600", max_size=12))
def test_characters_of_byte_tokens_are_whole(text: str) -> None:
    tokens = [3 + byte for byte in text.encode()]
    decoder = FALLBACK.decoder([1, 259 + 1], skip_special=True)
    pieces = [decoder.step(token) for token in tokens]
    assert "".join(pieces) == text
    assert all("\N{REPLACEMENT CHARACTER}" not in piece for piece in pieces)


def test_text_that_looks_like_a_control_token_is_text_unless_asked(
    tokenizer: TextTokenizer,
) -> None:
    plain = tokenizer.encode("a</s>", parse_special=False, add_special=True)
    assert plain == [1, *(TOKENS[byte] for byte in b"a</s>")]
    parsed = tokenizer.encode("a</s>", parse_special=True, add_special=False)
    assert parsed == [TOKENS[ord("a")], 2]


def test_a_run_without_white_space_is_bounded(tokenizer: TextTokenizer) -> None:
    run = "x" * MAX_UNBROKEN
    encoded = tokenizer.encode(f"{run} {run}\n{run}", parse_special=False, add_special=False)
    assert len(encoded) == 3 * MAX_UNBROKEN + 2
    with pytest.raises(InvalidArgumentError, match=f"{MAX_UNBROKEN + 1} characters") as caught:
        tokenizer.encode(run + "x", parse_special=False, add_special=False)
    assert (caught.value.reason, caught.value.field) == ("INVALID_FIELD", "prompt")


def test_a_tokenizer_that_would_cut_or_fill_does_neither() -> None:
    cutting = Tokenizer.from_str(BYTES.to_str())
    cutting.enable_truncation(4)
    cutting.enable_padding(length=16)
    tokenizer = TextTokenizer(cutting.to_str())
    assert len(tokenizer.encode("x" * 10, parse_special=False, add_special=False)) == 10


def test_a_vocabulary_is_in_memory_once(tokenizer: TextTokenizer) -> None:
    grown = TextTokenizer(tokenizer, [NEW])
    models_of = [of for made in (tokenizer, grown) for of in (made._control, made._plain)]
    tokenizer._control.model.dropout = 0.5  # of the model, and of nothing else
    try:
        assert [of.model.dropout for of in models_of] == [0.5] * 4
    finally:
        tokenizer._control.model.dropout = None


def test_tokenizers_that_share_a_vocabulary_keep_their_tokens_apart(
    tokenizer: TextTokenizer,
) -> None:
    grown = TextTokenizer(tokenizer, [AddedToken(1, "<s>", special=True), NEW])
    alone = TextTokenizer(BYTES.to_str(), [NEW])
    for parse in (False, True):
        for text in ("a<new>b", "<s>a</s>", " <new></s>"):
            theirs = alone.encode(text, parse_special=parse, add_special=True)
            assert grown.encode(text, parse_special=parse, add_special=True) == theirs
    assert NEW.id in grown.encode("<new>", parse_special=True, add_special=False)
    assert NEW.id not in tokenizer.encode("<new>", parse_special=True, add_special=False)


@pytest.mark.parametrize(("texts", "field"), [(("z", "a"), "one"), (("a", "z"), "two")])
def test_the_error_names_which_of_two_texts_cannot_be_tokenized(
    texts: tuple[str, str], field: str
) -> None:
    words = TextTokenizer(Tokenizer(models.WordLevel({"a": 0}, unk_token="none")).to_str())
    with pytest.raises(InvalidArgumentError, match="cannot be tokenized") as caught:
        words.encode_pair(texts, ("one", "two"), parse_special=False, add_special=True)
    assert caught.value.field == field
