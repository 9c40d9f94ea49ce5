"""Text -> tokens, and tokens -> text as they come."""

from collections.abc import Sequence
from dataclasses import dataclass

from tokenizers import Tokenizer
from tokenizers.decoders import DecodeStream

from loramux.errors import InvalidArgumentError

MAX_UNBROKEN = 16 << 10
"""Longest run of characters without white space: what some tokenizers take quadratic time for."""
_CONTEXT = 5
"""Prompt tokens that the decoder sees first, so that it knows whether a text goes on."""


class TextTokenizer:
    """The base model's tokenizer."""

    def __init__(self, tokenizer_json: str) -> None:
        # Two, because whether `</s>` in a text is a control token is state of a tokenizer.
        self._control = _load(tokenizer_json)
        self._plain = _load(tokenizer_json)
        self._plain.encode_special_tokens = True

    def encode(self, text: str, *, parse_special: bool, add_special: bool) -> list[int]:
        """Return the tokens of `text`.

        Args:
            text: What the user wrote.
            parse_special: Whether text such as `</s>` is a control token or plain text.
            add_special: Whether the tokenizer puts its own prefix before the text.

        Raises:
            InvalidArgumentError: The text cannot be tokenized.
        """
        longest = max(map(len, text.split()), default=0)
        if longest > MAX_UNBROKEN:
            raise InvalidArgumentError(
                f"prompt has {longest} characters without white space; at most {MAX_UNBROKEN}",
                reason="INVALID_FIELD",
                field="prompt",
            )
        tokenizer = self._control if parse_special else self._plain
        try:
            return list(tokenizer.encode(text, add_special_tokens=add_special).ids)
        # A panic in the library is a BaseException, and another user's server must not stop for it.
        except BaseException as error:
            if isinstance(error, KeyboardInterrupt | SystemExit):
                raise
            raise InvalidArgumentError(
                "prompt cannot be tokenized", reason="INVALID_FIELD", field="prompt"
            ) from None

    def decoder(self, prompt: Sequence[int], *, skip_special: bool) -> "TextDecoder":
        """Return a decoder for what follows `prompt`."""
        stream = DecodeStream(ids=list(prompt[-_CONTEXT:]), skip_special_tokens=skip_special)
        return TextDecoder(self._control, stream)


@dataclass(slots=True)
class TextDecoder:
    """Turns tokens into text without ever splitting a character."""

    _tokenizer: Tokenizer
    _stream: DecodeStream

    def step(self, token: int) -> str:
        """Return the text that `token` completes; empty while a character is incomplete."""
        return self._stream.step(self._tokenizer, token) or ""


def _load(tokenizer_json: str) -> Tokenizer:
    tokenizer = Tokenizer.from_str(tokenizer_json)
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer
