"""Whether a template takes contents as strings or as lists of parts, derived once per template."""

from loramux.errors import FailedPreconditionError, InvalidArgumentError
from loramux_server.chat.chat import Chat
from loramux_server.chat.format import ChatFormat
from loramux_server.chat.messages import Conversation, Message
from loramux_server.chat.renderer import TemplateLimitError
from loramux_server.chat.template_cache import TemplateCache

_TEXT = "Where?"
_MENTIONED = "image"
"""A template without this word handles no parts."""


class ContentFormatDetector:
    """Derives it by rendering a message whose content is a string, and one with a list.

    Some templates handle only lists of parts, and leave out a content that is a string.
    """

    def __init__(self, chat: Chat) -> None:
        """Render with `chat`."""
        self._chat = chat
        self._known = TemplateCache[bool](chat, self._found)

    async def lists(self, chat_format: ChatFormat) -> bool:
        """Return whether each content has to be given to the template as a list.

        Args:
            chat_format: Which template, and its tokens.

        Raises:
            FailedPreconditionError: There is no template.
            UnavailableError: The renderer process cannot be started.
        """
        if _MENTIONED not in self._chat.source(chat_format):
            return False
        try:
            return await self._known.get(chat_format)
        except TemplateLimitError:  # not cached: the next attempt may succeed
            return False

    async def _found(self, chat_format: ChatFormat) -> bool:
        conversation = Conversation([Message("user", _TEXT)])
        if await self._is_written(conversation, chat_format):
            return False
        listed = Conversation(conversation.messages, lists_contents=True)
        return await self._is_written(listed, chat_format)

    async def _is_written(self, conversation: Conversation, chat_format: ChatFormat) -> bool:
        """Return whether the text of `conversation` appears in what the template renders."""
        try:
            pieces = await self._chat.pieces(conversation, chat_format, add_generation_prompt=True)
        except TemplateLimitError:
            raise
        except (InvalidArgumentError, FailedPreconditionError):
            return False
        return _TEXT in "".join(piece.text for piece in pieces)
