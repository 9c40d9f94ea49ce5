"""Where tokens begin in a text, in characters."""

import pytest

from loramux.gateway.offsets import TextOffsets, joined, offsets_in
from loramux.v1.generation_pb2 import TokenLogprob


def tokens(*texts: str | bytes) -> list[TokenLogprob]:
    return [TokenLogprob(utf8=text.encode() if isinstance(text, str) else text) for text in texts]


@pytest.mark.parametrize(
    ("text", "given", "wanted"),
    [
        pytest.param("a bc", ("a", " b", "c"), [0, 1, 3], id="plain"),
        pytest.param("a bc", ("<s>", "a", " b", "c"), [0, 0, 1, 3], id="begins"),
        pytest.param("a bc", ("<s>", " a", " bc"), [0, 0, 1], id="space-put-before"),
        pytest.param(" a bc", ("<s>", " a", " bc"), [0, 0, 2], id="space-of-the-text"),
        pytest.param("a bc", (" ", "a", " bc"), [0, 0, 1], id="space-as-a-token"),
        pytest.param("ab", ("a", "b", "</s>"), [0, 1, 2], id="ends"),
        pytest.param("é!", (b"\xc3", b"\xa9", "!"), [0, 0, 1], id="parts-of-a-character"),
        pytest.param("x🦁y", ("x", b"\xf0\x9f", b"\xa6\x81", "y"), [0, 1, 1, 2], id="halves"),
        pytest.param("ab", (b"", b""), [0, 0], id="no-tokenizer"),
        pytest.param("ABC", ("abcdef", "g"), [0, 0], id="another-text"),
    ],
)
def test_tokens_of_a_text_are_where_they_are_in_it(
    text: str, given: tuple[str | bytes, ...], wanted: list[int]
) -> None:
    assert offsets_in(text, tokens(*given)) == wanted


def test_what_follows_is_counted_on_across_pieces() -> None:
    offsets = TextOffsets(5)
    assert offsets.of(tokens("ab", b"\xc3")) == [5, 7]
    assert offsets.of(tokens(b"\xa9", "!", "</s>")) == [7, 8, 9]
    assert offsets.of([]) == []
    # A character that never becomes whole is one that stands for it.
    assert TextOffsets().of(tokens(b"\xff", "a", "b")) == [0, 1, 2]
    assert joined(tokens(b"\xff", "a")) == "\ufffda"
