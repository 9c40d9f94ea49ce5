"""How the template of a request writes calls, found out once for each template."""

from collections.abc import Collection

from loramux.errors import FailedPreconditionError, InvalidArgumentError
from loramux_server.chat.by_template import ByTemplate
from loramux_server.chat.chat import Chat
from loramux_server.chat.format import EOS_TOKEN, ChatFormat
from loramux_server.chat.messages import Piece, Talk
from loramux_server.chat.renderer import TemplateLimitError
from loramux_server.tools.addressed import AddressedSyntax
from loramux_server.tools.histories import as_taken
from loramux_server.tools.probe import Probe
from loramux_server.tools.syntax import ToolSyntax
from loramux_server.tools.written import UnknownSyntaxError


class ToolFinder:
    """Renders conversations with calls, by the template that counts."""

    def __init__(self, chat: Chat, end_token_ids: Collection[int]) -> None:
        """Render by `chat`; `end_token_ids` end what the model writes."""
        self._chat = chat
        self._end_token_ids = frozenset(end_token_ids)
        self._known = ByTemplate[ToolSyntax | AddressedSyntax | str](chat, self._found)
        """In place of an unknown one, what the template does."""

    async def find(self, chat_format: ChatFormat) -> ToolSyntax | AddressedSyntax:
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

    async def as_taken(self, talk: Talk, chat_format: ChatFormat) -> Talk:
        """Return a conversation with calls as the template takes them.

        The errors are those of `find`, but that the template need not know how calls are read.
        """
        found = await self._known.get(chat_format)
        return as_taken(talk, found) if isinstance(found, ToolSyntax) else talk

    async def _found(self, chat_format: ChatFormat) -> ToolSyntax | AddressedSyntax | str:
        async def write(talk: Talk, prompt: bool) -> list[Piece] | None:
            return await self._pieces(talk, chat_format, prompt=prompt)

        vocabulary = await self._chat.vocabulary(chat_format)
        ends = {text for text, number in vocabulary.ids.items() if number in self._end_token_ids}
        ends |= {text for name, text in chat_format.special_tokens if name == EOS_TOKEN}
        try:
            return await Probe(write, vocabulary, ends).syntax()
        except UnknownSyntaxError as error:
            return str(error)

    async def _pieces(
        self, talk: Talk, chat_format: ChatFormat, *, prompt: bool
    ) -> list[Piece] | None:
        """Return what a template makes of `talk`; None where it refuses or fails."""
        try:
            return await self._chat.pieces(talk, chat_format, add_generation_prompt=prompt)
        except TemplateLimitError:  # which says nothing of what it does the next time
            raise
        except (InvalidArgumentError, FailedPreconditionError):
            return None
