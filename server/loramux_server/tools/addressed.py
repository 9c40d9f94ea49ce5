"""How a template writes calls that are messages to a tool, on a channel."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from loramux_server.chat.channels import Channels, channels_of
from loramux_server.chat.encoder import Vocabulary
from loramux_server.chat.messages import Piece
from loramux_server.tools.conversations import FIRST, SIGN
from loramux_server.tools.written import unreadable

_KIND = "<|constrain|>"
"""What models write before the kind of a content, and templates leave out."""
_RECIPIENT = re.compile(r"\s+[a-z]+=\S{0,32}")
_WORDS = re.compile(r"\w{1,32}( \w{1,32})?")


@dataclass(frozen=True, slots=True)
class AddressedSyntax:
    """How they are written: begin, recipient, name, header, arguments, end.

    A model may name the recipient in the header as well, behind the channel.
    """

    channels: Channels
    recipient: str
    """What stands before the name of a tool, with the white space before that."""
    channel: str
    kind: str
    """What the header says that arguments are; empty if nothing."""
    end: Piece
    ids: Mapping[str, int]
    """The added tokens among all that."""

    @property
    def kind_mark(self) -> Piece | None:
        """A token that may stand before the kind; None where there is none."""
        return Piece(_KIND, True) if _KIND in self.ids else None


def addressed_of(
    answering: Sequence[Piece], calling: Sequence[Piece], vocabulary: Vocabulary
) -> AddressedSyntax:
    """Return how a template writes calls.

    Args:
        answering: What it makes of `ANSWERING`.
        calling: What it makes of `CALLING`.
        vocabulary: The tokenizer's added tokens.

    Raises:
        UnknownSyntaxError: In another way.
    """
    channels = channels_of(answering, SIGN)
    # Before its last place the name is in what is told of the tool.
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
    """Return whether `text` is the arguments of `FIRST`."""
    try:
        return bool(json.loads(text) == FIRST.arguments)
    except ValueError:
        return False
