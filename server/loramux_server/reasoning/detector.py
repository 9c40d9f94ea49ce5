"""How the template of a request marks reasoning, derived once per template."""

import re

from loramux.errors import FailedPreconditionError, InvalidArgumentError
from loramux_server.chat.channels import channels_of
from loramux_server.chat.chat import Chat
from loramux_server.chat.format import ChatFormat
from loramux_server.chat.messages import Conversation, Piece
from loramux_server.chat.renderer import TemplateLimitError
from loramux_server.chat.template_cache import TemplateCache
from loramux_server.reasoning.channels import ANSWERING, ChannelSyntax, channel_syntax_of
from loramux_server.reasoning.syntax import ANSWER, THINKING, ReasoningSyntax, reasoning_syntax_of

_MENTIONED = re.compile("think|reason", re.IGNORECASE)


class ReasoningSyntaxDetector:
    """Derives the reasoning syntax by rendering conversations with and without reasoning."""

    def __init__(self, chat: Chat) -> None:
        self._chat = chat
        self._known = TemplateCache[ReasoningSyntax | ChannelSyntax | None](chat, self._found)

    async def find(self, chat_format: ChatFormat) -> ReasoningSyntax | ChannelSyntax | None:
        """Return how a template marks reasoning; None if it does not.

        Args:
            chat_format: Which template, and its tokens.

        Raises:
            FailedPreconditionError: There is no template.
            UnavailableError: The renderer process cannot be started.
        """
        try:
            return await self._known.get(chat_format)
        except TemplateLimitError:  # not remembered: the next attempt may succeed
            return None

    async def _found(self, chat_format: ChatFormat) -> ReasoningSyntax | ChannelSyntax | None:
        source = self._chat.source(chat_format)
        if not _MENTIONED.search(source):
            return None
        thinking = await self._pieces(THINKING, chat_format)
        ids = (await self._chat.vocabulary(chat_format)).ids
        if found := channel_syntax_of(thinking or [], ids):
            answering = await self._pieces(ANSWERING, chat_format)
            if channels_of(answering or [], ANSWER) == found.channels:
                return found
        return reasoning_syntax_of(thinking, source, ids)

    async def _pieces(
        self, conversation: Conversation, chat_format: ChatFormat
    ) -> list[Piece] | None:
        """Return `conversation` as the template renders it; None if it rejects it or fails."""
        try:
            return await self._chat.pieces(conversation, chat_format, add_generation_prompt=False)
        except TemplateLimitError:
            raise
        except (InvalidArgumentError, FailedPreconditionError):
            return None
