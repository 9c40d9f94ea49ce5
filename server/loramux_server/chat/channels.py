"""Answers of several messages, each of which is begun anew and says on which channel it is."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from loramux_server.chat.messages import Piece

_CHANNEL = re.compile(r"\w{1,32}")


@dataclass(frozen=True, slots=True)
class Channels:
    """How a template writes them: begin, before, channel, after, content, end.

    All but the word in `begin` and the channel are tokens.
    """

    begin: tuple[Piece, ...]
    """A token and a word, with which the prompt for an answer ends."""
    before: Piece
    after: Piece
    end: Piece
    answer: str
    """The channel of what is for the user."""

    def header(self, channel: str) -> tuple[Piece, ...]:
        """Return what stands before a content on `channel`."""
        return self.before, Piece(channel, False), self.after

    @property
    def between(self) -> tuple[Piece, ...]:
        """What ends a message and begins the next one."""
        return self.end, *self.begin

    @property
    def tokens(self) -> frozenset[str]:
        """The tokens among all that."""
        written = (*self.between, self.before, self.after)
        return frozenset(piece.text for piece in written if piece.is_token)


def channels_of(pieces: Sequence[Piece], answer: str) -> Channels | None:
    """Return how messages are written; None where they have no channels.

    Args:
        pieces: What a template makes of a conversation whose last message is an answer.
        answer: The text of that.
    """
    at = next((i for i, piece in enumerate(pieces) if piece.text.startswith(answer)), 0)
    written = pieces[max(0, at - 6) : at]
    if [piece.is_token for piece in written] != [True, True, False, True, False, True]:
        return None
    end, start, role, before, channel, after = written
    if not _CHANNEL.fullmatch(channel.text):
        return None
    return Channels((start, role), before, after, end, channel.text)
