"""In which form a template takes the contents of messages, found out once for each template."""

from loramux.errors import FailedPreconditionError, InvalidArgumentError
from loramux_server.chat.by_template import ByTemplate
from loramux_server.chat.chat import Chat
from loramux_server.chat.format import ChatFormat
from loramux_server.chat.messages import Talk, Turn
from loramux_server.chat.renderer import TemplateLimitError

_TEXT = "Where?"
_MENTIONED = "image"
"""A template without this word looks at no parts."""


class ContentFinder:
    """Gives a template a message whose content is a text, and one whose content is a list.

    Some templates know lists of parts alone, and leave out a content that is none.
    """

    def __init__(self, chat: Chat) -> None:
        """Render by `chat`."""
        self._chat = chat
        self._known = ByTemplate[bool](chat, self._found)

    async def lists(self, chat_format: ChatFormat) -> bool:
        """Return whether a template has to be given lists alone.

        Args:
            chat_format: How conversations are written.

        Raises:
            FailedPreconditionError: There is no template.
            UnavailableError: No process for templates can be started.
        """
        if _MENTIONED not in self._chat.source(chat_format):
            return False
        try:
            return await self._known.get(chat_format)
        except TemplateLimitError:  # which says nothing of what it does the next time
            return False

    async def _found(self, chat_format: ChatFormat) -> bool:
        talk = Talk([Turn("user", _TEXT)])
        if await self._is_written(talk, chat_format):
            return False
        listed = Talk(talk.turns, lists_contents=True)
        return await self._is_written(listed, chat_format)

    async def _is_written(self, talk: Talk, chat_format: ChatFormat) -> bool:
        """Return whether a template writes the text of `talk`."""
        try:
            pieces = await self._chat.pieces(talk, chat_format, add_generation_prompt=True)
        except TemplateLimitError:
            raise
        except (InvalidArgumentError, FailedPreconditionError):
            return False
        return _TEXT in "".join(piece.text for piece in pieces)
