"""How the template of a request writes calls, derived once per template."""

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
    """Derives the syntax of tool calls by rendering conversations with calls."""

    def __init__(self, chat: Chat, end_token_ids: Collection[int]) -> None:
        """Render with `chat`; `end_token_ids` end a completion."""
        self._chat = chat
        self._end_token_ids = frozenset(end_token_ids)
        self._known = ByTemplate[ToolSyntax | AddressedSyntax | str](chat, self._found)
        """In place of an unsupported syntax, the reason, to follow "the chat template"."""

    async def find(self, chat_format: ChatFormat) -> ToolSyntax | AddressedSyntax:
        """Return how a template writes tool calls.

        Args:
            chat_format: Which template, and its tokens.

        Raises:
            FailedPreconditionError: There is no template, it fails, does not support tools, or
                writes calls in an unsupported syntax.
            UnavailableError: The renderer process cannot be started.
        """
        found = await self._known.get(chat_format)
        if isinstance(found, str):
            raise FailedPreconditionError(
                f"tools are given, but the chat template {found}; omit them, or pack the "
                "adapter with another --chat-template",
                reason="CHAT_TEMPLATE_FAILED",
                field="tools",
            )
        return found

    async def as_taken(self, talk: Talk, chat_format: ChatFormat) -> Talk:
        """Return a conversation with its calls in the form that the template takes.

        Raises like `find`, except that tools and the syntax of calls need not be supported.
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
        """Return `talk` as the template renders it; None if it rejects it or fails."""
        try:
            return await self._chat.pieces(talk, chat_format, add_generation_prompt=prompt)
        except TemplateLimitError:  # not cached: the next attempt may succeed
            raise
        except (InvalidArgumentError, FailedPreconditionError):
            return None
