"""Templates that write reasoning as a message of its own, on another channel."""

import enum
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from loramux_server.chat.channels import Channels, channels_of
from loramux_server.chat.messages import Conversation, Message, Piece
from loramux_server.reasoning.syntax import ANSWER, THOUGHT
from loramux_server.tools.syntax import joined

ANSWERING = Conversation([Message("user", "Where?"), Message("assistant", ANSWER)])


class OpenMessage(enum.Enum):
    """Which message the prompt has already begun."""

    NOTHING = enum.auto()
    THOUGHT = enum.auto()
    ANSWER = enum.auto()


@dataclass(frozen=True, slots=True)
class ChannelSyntax:
    """How messages on channels are written, and which channel is for reasoning."""

    channels: Channels
    thought: str
    ids: Mapping[str, int]
    """Ids of the added tokens in the markup of messages."""

    def open_message(self, prompt: str) -> OpenMessage:
        """Return which message `prompt`, or its end, has begun."""
        _, begin, last = prompt.rpartition(joined(self.channels.begin))
        if not begin or self.channels.end.text in last:
            return OpenMessage.NOTHING
        if last.startswith(joined(self.channels.header(self.thought))):
            return OpenMessage.THOUGHT
        return OpenMessage.ANSWER if self.channels.after.text in last else OpenMessage.NOTHING


def channel_syntax_of(thinking: Sequence[Piece], ids: Mapping[str, int]) -> ChannelSyntax | None:
    """Return how a template uses channels for reasoning; None if it does not.

    Args:
        thinking: `THINKING` as rendered by the template.
        ids: The tokenizer's added tokens.
    """
    channels = channels_of(thinking, ANSWER)
    at = next((i for i, piece in enumerate(thinking) if piece.text == THOUGHT), 0)
    if channels is None or at < len(channels.begin) + 3:
        return None
    thought = thinking[at - 2].text
    before = (*channels.begin, *channels.header(thought))
    after = (*channels.between, *channels.header(channels.answer))
    if thought == channels.answer or not (
        tuple(thinking[at - len(before) : at]) == before
        and tuple(thinking[at + 1 : at + 1 + len(after)]) == after
    ):
        return None
    return ChannelSyntax(channels, thought, {token: ids[token] for token in channels.tokens})
