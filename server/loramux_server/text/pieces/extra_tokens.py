"""Tokens that a tokenizer needs for segmentation, but that its base model lacks.

A vocabulary may lack some of the pieces of a SentencePiece model or of a list of merges; the base
reads these as unknown. The tokenizer needs them nevertheless, since segmentation depends on all of
them. So they get ids beyond the base's, which encoding replaces by that of the unknown token.
"""

from collections.abc import Sequence

from tokenizers import Tokenizer

from loramux_server.text.pieces.names import FIRST_EXTRA, UNKNOWN


class ExtraTokens:
    """Maps a tokenizer's tokens to those of its base model."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        """Find the tokens beyond the base model in `tokenizer`, if it has any."""
        first = tokenizer.token_to_id(FIRST_EXTRA)
        self.tokens = range(0)
        """Ids that the base model does not have."""
        if first is not None:
            self.tokens = range(first, tokenizer.get_vocab_size(with_added_tokens=False))
            self._unknown = tokenizer.encode(UNKNOWN, add_special_tokens=False).ids[-1]

    def to_base(self, tokens: Sequence[int]) -> list[int]:
        """Return `tokens` with those beyond the base replaced by the unknown token."""
        if not self.tokens:
            return list(tokens)
        return [self._unknown if token in self.tokens else token for token in tokens]
