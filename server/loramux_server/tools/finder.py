"""How the template of a request writes calls, found out once for each template."""

import asyncio
from collections.abc import Collection

from loramux.errors import FailedPreconditionError, InvalidArgumentError
from loramux_server.chat.by_template import ByTemplate
from loramux_server.chat.chat import Chat
from loramux_server.chat.format import EOS_TOKEN, ChatFormat
from loramux_server.chat.messages import Piece, Talk
from loramux_server.chat.renderer import TemplateLimitError
from loramux_server.tools.conversations import ANSWERING, ASKING, CALLING, CALLING_TWICE
from loramux_server.tools.derive import syntax_of
from loramux_server.tools.syntax import ToolSyntax
from loramux_server.tools.written import UnknownSyntaxError

MAX_PIECES = 10_000
"""Of what a template makes of all conversations that it is given."""


class ToolFinder:
    """Renders conversations with calls, by the template that counts."""

    def __init__(self, chat: Chat, end_token_ids: Collection[int]) -> None:
        """Render by `chat`; `end_token_ids` end what the model writes."""
        self._chat = chat
        self._end_token_ids = frozenset(end_token_ids)
        self._known = ByTemplate[ToolSyntax | str](chat, self._found)
        """In place of an unknown one, what the template does."""

    async def find(self, chat_format: ChatFormat) -> ToolSyntax:
        """Return how a template writes calls of tools.

        Args:
            chat_format: How conversations are written.

        Raises:
            FailedPreconditionError: There is no template, it fails, knows of no tools, or writes
                calls in a way that is not read.
            UnavailableError: No process for templates can be started.
        """
        found = await self._known.get(chat_format)
        if isinstance(found, str):
            raise FailedPreconditionError(
                f"tools are given, and the chat template {found}; leave them out, or pack the "
                "adapter with another --chat-template",
                reason="CHAT_TEMPLATE_FAILED",
                field="tools",
            )
        return found

    async def _found(self, chat_format: ChatFormat) -> ToolSyntax | str:
        asking = await self._pieces(ASKING, chat_format, prompt=True)
        answering = await self._pieces(ANSWERING, chat_format)
        calling = await self._pieces(CALLING, chat_format)
        twice = await self._pieces(CALLING_TWICE, chat_format)
        if asking is None or answering is None or calling is None:
            return "takes no tools, or no calls of them"
        if sum(map(len, (asking, answering, calling, twice or []))) > MAX_PIECES:
            return "writes too much around calls of tools"
        vocabulary = await self._chat.vocabulary(chat_format)
        ends = {text for text, number in vocabulary.ids.items() if number in self._end_token_ids}
        ends |= {text for name, text in chat_format.special_tokens if name == EOS_TOKEN}
        try:
            return await asyncio.to_thread(
                syntax_of, asking, answering, calling, twice, vocabulary, ends
            )
        except UnknownSyntaxError as error:
            return str(error)

    async def _pieces(
        self, talk: Talk, chat_format: ChatFormat, *, prompt: bool = False
    ) -> list[Piece] | None:
        """Return what a template makes of `talk`; None where it refuses or fails."""
        try:
            return await self._chat.pieces(talk, chat_format, add_generation_prompt=prompt)
        except TemplateLimitError:  # which says nothing of what it does the next time
            raise
        except (InvalidArgumentError, FailedPreconditionError):
            return None
