"""Tokens that a tokenizer takes a text apart into, and that its base model does not have.

Of what a SentencePiece model or a list of merges makes, a vocabulary may lack some, and the base
reads these as unknown. A tokenizer needs them nevertheless, since a text falls apart by all that
there are. So they have ids beyond the base's, which become that of the unknown token where a text
is encoded.
"""

from collections.abc import Sequence

from tokenizers import Tokenizer

from loramux_server.text.pieces.names import BEYOND, UNKNOWN


class Beyond:
    """Turns tokens of a tokenizer into those of its base model."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        """Find out where in `tokenizer` they are, if it has any."""
        first = tokenizer.token_to_id(BEYOND)
        self.tokens = range(0)
        """Those that the base model does not have."""
        if first is not None:
            self.tokens = range(first, tokenizer.get_vocab_size(with_added_tokens=False))
            self._unknown = tokenizer.encode(UNKNOWN, add_special_tokens=False).ids[-1]

    def read(self, tokens: Sequence[int]) -> list[int]:
        """Return `tokens` as the base model reads them."""
        if not self.tokens:
            return list(tokens)
        return [self._unknown if token in self.tokens else token for token in tokens]
