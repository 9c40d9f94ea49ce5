"""Answers that consist of several messages, each with a header that names its channel."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from loramux_server.chat.messages import Piece

_CHANNEL = re.compile(r"\w{1,32}")


@dataclass(frozen=True, slots=True)
class Channels:
    """How a template writes a message: begin, before, channel, after, content, end.

    All but the role in `begin`, the channel and the content are tokens.
    """

    begin: tuple[Piece, ...]
    """A token and a role; the generation prompt ends with them."""
    before: Piece
    after: Piece
    end: Piece
    answer: str
    """The channel of messages for the user."""

    def header(self, channel: str) -> tuple[Piece, ...]:
        """Return what precedes content on `channel`, after `begin`."""
        return self.before, Piece(channel, False), self.after

    @property
    def between(self) -> tuple[Piece, ...]:
        """What ends one message and begins the next one."""
        return self.end, *self.begin

    @property
    def tokens(self) -> frozenset[str]:
        """The added tokens in all of this."""
        written = (*self.between, self.before, self.after)
        return frozenset(piece.text for piece in written if piece.is_token)


def channels_of(pieces: Sequence[Piece], answer: str) -> Channels | None:
    """Return how messages are written; None if they have no channels.

    Args:
        pieces: A rendered conversation whose last message is an answer.
        answer: The text with which that answer begins.
    """
    at = next((i for i, piece in enumerate(pieces) if piece.text.startswith(answer)), 0)
    written = pieces[max(0, at - 6) : at]
    if [piece.is_token for piece in written] != [True, True, False, True, False, True]:
        return None
    end, start, role, before, channel, after = written
    if not _CHANNEL.fullmatch(channel.text):
        return None
    return Channels((start, role), before, after, end, channel.text)
