"""Templates that write a call as a message to a tool, on a channel."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from loramux_server.chat.channels import Channels, channels_of
from loramux_server.chat.encoder import Vocabulary
from loramux_server.chat.messages import Piece
from loramux_server.tools.conversations import FIRST, SIGN
from loramux_server.tools.rendered_text import unreadable

_KIND = "<|constrain|>"
"""A token that models write before the type of the content, and templates omit."""
_RECIPIENT = re.compile(r"\s+[a-z]+=\S{0,32}")
_WORDS = re.compile(r"\w{1,32}( \w{1,32})?")


@dataclass(frozen=True, slots=True)
class AddressedSyntax:
    """How a call is written: begin, recipient, name, header, arguments, end.

    A model may also name the recipient in the header, after the channel.
    """

    channels: Channels
    recipient: str
    """The text before the name of a tool, with leading white space."""
    channel: str
    kind: str
    """The type of the arguments in the header; empty if there is none."""
    end: Piece
    ids: Mapping[str, int]
    """Ids of the added tokens in all of this."""

    @property
    def kind_mark(self) -> Piece | None:
        """A token that may precede the type; None if there is none."""
        return Piece(_KIND, True) if _KIND in self.ids else None


def addressed_of(
    answering: Sequence[Piece], calling: Sequence[Piece], vocabulary: Vocabulary
) -> AddressedSyntax:
    """Return how a template writes calls.

    Args:
        answering: `ANSWERING` as rendered by it.
        calling: `CALLING` as rendered by it.
        vocabulary: The tokenizer's added tokens.

    Raises:
        UnknownSyntaxError: It writes them in another way.
    """
    channels = channels_of(answering, SIGN)
    # The last occurrence of the name; earlier ones are in the declaration of the tool.
    at = max((i for i, piece in enumerate(calling) if piece.text.endswith(FIRST.name)), default=0)
    written = calling[max(0, at - 1) : at + 6]
    if channels is None or len(written) != 7:
        raise unreadable()
    start, named, before, header, after, arguments, end = written
    begin, role = channels.begin
    recipient = named.text.removesuffix(FIRST.name).removeprefix(role.text)
    channel, *kind = header.text.split() or [""]
    is_like_others = (start, before, after) == (begin, channels.before, channels.after)
    if not (
        is_like_others
        and named.text.startswith(role.text)
        and _RECIPIENT.fullmatch(recipient)
        and _WORDS.fullmatch(header.text)
        and end.is_token
        and _is_object(arguments.text)
    ):
        raise unreadable()
    used = {*channels.tokens, end.text, *({_KIND} & vocabulary.control)}
    return AddressedSyntax(
        channels, recipient, channel, "".join(kind), end,
        {token: vocabulary.ids[token] for token in used},
    )  # fmt: skip


def _is_object(text: str) -> bool:
    """Return whether `text` is the arguments of `FIRST` as JSON."""
    try:
        return bool(json.loads(text) == FIRST.arguments)
    except ValueError:
        return False
