"""How the template of a request writes calls, derived once per template."""

from collections.abc import Collection

from loramux.errors import FailedPreconditionError, InvalidArgumentError
from loramux_server.chat.chat import Chat
from loramux_server.chat.format import EOS_TOKEN, ChatFormat
from loramux_server.chat.messages import Conversation, Piece
from loramux_server.chat.renderer import TemplateLimitError
from loramux_server.chat.template_cache import TemplateCache
from loramux_server.tools.addressed import AddressedSyntax
from loramux_server.tools.histories import adapt_history
from loramux_server.tools.probe import Probe
from loramux_server.tools.rendered_text import UnknownSyntaxError
from loramux_server.tools.syntax import ToolSyntax


class ToolSyntaxDetector:
    """Derives the syntax of tool calls by rendering conversations with calls."""

    def __init__(self, chat: Chat, end_token_ids: Collection[int]) -> None:
        """Render with `chat`; `end_token_ids` end a completion."""
        self._chat = chat
        self._end_token_ids = frozenset(end_token_ids)
        self._known = TemplateCache[ToolSyntax | AddressedSyntax | str](chat, self._found)
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

    async def adapt_history(
        self, conversation: Conversation, chat_format: ChatFormat
    ) -> Conversation:
        """Return a conversation with its calls in the form that the template takes.

        Raises like `find`, except that tools and the syntax of calls need not be supported.
        """
        found = await self._known.get(chat_format)
        return adapt_history(conversation, found) if isinstance(found, ToolSyntax) else conversation

    async def _found(self, chat_format: ChatFormat) -> ToolSyntax | AddressedSyntax | str:
        async def write(conversation: Conversation, prompt: bool) -> list[Piece] | None:
            return await self._pieces(conversation, chat_format, prompt=prompt)

        vocabulary = await self._chat.vocabulary(chat_format)
        ends = {text for text, number in vocabulary.ids.items() if number in self._end_token_ids}
        ends |= {text for name, text in chat_format.special_tokens if name == EOS_TOKEN}
        try:
            return await Probe(write, vocabulary, ends).syntax()
        except UnknownSyntaxError as error:
            return str(error)

    async def _pieces(
        self, conversation: Conversation, chat_format: ChatFormat, *, prompt: bool
    ) -> list[Piece] | None:
        """Return `conversation` as the template renders it; None if it rejects it or fails."""
        try:
            return await self._chat.pieces(conversation, chat_format, add_generation_prompt=prompt)
        except TemplateLimitError:  # not cached: the next attempt may succeed
            raise
        except (InvalidArgumentError, FailedPreconditionError):
            return None
