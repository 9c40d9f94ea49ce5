"""Messages -> tokens, with the chat template of an adapter or of the base model."""

import asyncio
from collections import OrderedDict
from collections.abc import Sequence

from loramux.errors import FailedPreconditionError
from loramux_adapters.added_tokens import AddedToken
from loramux_server.chat.encoder import ChatEncoder, Vocabulary
from loramux_server.chat.format import OF_BASE, ChatFormat
from loramux_server.chat.messages import Conversation, Piece, Render, Setup, TemplateTokens
from loramux_server.chat.renderer import Renderer
from loramux_server.images.messages import Placeholder
from loramux_server.tasks import finished
from loramux_server.text.tokenizer import OFF_LOOP

KEPT = 16
"""Encoders kept for adapters with tokens of their own; they share the base's vocabulary."""


class Chat:
    """Turns conversations into prompts for one base model.

    The base model's template has a process of its own, so that no adapter's template delays it.
    """

    def __init__(
        self, tokenizer_json: str, template: str | None, special_tokens: dict[str, str]
    ) -> None:
        """Prepare; nothing is loaded or started before the first conversation.

        Args:
            tokenizer_json: The base model's tokenizer.
            template: Its template, if it has one.
            special_tokens: Variables of templates, such as `bos_token`.
        """
        self._tokenizer_json = tokenizer_json
        self._template = template
        self._special_tokens = special_tokens
        self._preparing = asyncio.Lock()
        self._encoder: ChatEncoder | None = None
        self._own: OrderedDict[tuple[AddedToken, ...], ChatEncoder] = OrderedDict()
        """Encoders of adapters with tokens of their own, last used last."""
        self._renderers: list[Renderer] = []

    async def tokens(
        self,
        conversation: Conversation,
        chat_format: ChatFormat,
        *,
        add_generation_prompt: bool,
        placeholder: Placeholder | None = None,
    ) -> list[int]:
        """Return the tokens of a conversation.

        Args:
            conversation: Messages, tools and variables.
            chat_format: Which template, and its tokens.
            add_generation_prompt: Whether the template adds the start of an answer.
            placeholder: The placeholder of images, if there are any. No text becomes its token.

        Raises:
            FailedPreconditionError: There is no template, or it fails.
            InvalidArgumentError: The template rejects the messages, or they cannot be tokenized.
            UnavailableError: The renderer process cannot be started.
        """
        pieces = await self.pieces(
            conversation,
            chat_format,
            add_generation_prompt=add_generation_prompt,
            placeholder=placeholder,
        )
        encoder = await self._prepared(chat_format)
        if _length(pieces) < OFF_LOOP:
            return encoder.encode(pieces, placeholder)
        return await asyncio.to_thread(encoder.encode, pieces, placeholder)

    async def pieces(
        self,
        conversation: Conversation,
        chat_format: ChatFormat,
        *,
        add_generation_prompt: bool,
        placeholder: Placeholder | None = None,
    ) -> list[Piece]:
        """Return a rendered conversation; as `tokens`, but before tokenization."""
        source = self.source(chat_format)
        encoder = await self._prepared()
        renderer = self._renderers[0 if chat_format == OF_BASE else 1]
        # The image token counts as a control token, whatever the tokenizer says.
        token = placeholder and placeholder.token
        of_images = [text for text, id in encoder.vocabulary.ids.items() if id == token]
        own = TemplateTokens(
            (
                *(token.content for token in chat_format.added_tokens if token.special),
                *of_images,
            ),
            tuple(token.content for token in chat_format.added_tokens if not token.special),
            dict(chat_format.special_tokens),
        )
        return await renderer.render(Render(source, conversation, add_generation_prompt, own))

    def source(self, chat_format: ChatFormat) -> str:
        """Return the source of the template to use: the adapter's, or else the base model's.

        Raises:
            FailedPreconditionError: There is none.
        """
        source = self._template if chat_format.template is None else chat_format.template
        if source is None:
            raise FailedPreconditionError(
                "neither the adapter nor the base model has a chat template; give a prompt, or "
                "pack the adapter with --chat-template",
                reason="CHAT_TEMPLATE_MISSING",
                field="messages",
            )
        return source

    async def vocabulary(self, chat_format: ChatFormat) -> Vocabulary:
        """Return the added tokens, of base model and adapter, that a template may write."""
        return (await self._prepared(chat_format)).vocabulary

    async def close(self) -> None:
        """End the renderer processes."""
        for renderer in self._renderers:
            await renderer.close()

    async def _prepared(self, chat_format: ChatFormat = OF_BASE) -> ChatEncoder:
        added = chat_format.added_tokens
        if self._encoder and not added:
            return self._encoder
        if own := self._own.get(added):  # without waiting for one that is being prepared
            self._own.move_to_end(added)
            return own
        # A cancelled caller must not waste the work: with short deadlines it would never be done.
        return await finished(self._prepare(added))

    async def _prepare(self, added: tuple[AddedToken, ...]) -> ChatEncoder:
        async with self._preparing:
            if self._encoder is None:
                # This takes a second for a large vocabulary.
                encoder = await asyncio.to_thread(ChatEncoder, self._tokenizer_json)
                setup = Setup(encoder.template_tokens(self._special_tokens))
                # No caller can make the base model's template fail for others.
                self._renderers = [Renderer(setup, strikes=0), Renderer(setup)]
                self._encoder = encoder
            if not added:
                return self._encoder
            if added not in self._own:
                self._own[added] = await asyncio.to_thread(self._encoder.with_own, added)
                if len(self._own) > KEPT:
                    self._own.popitem(last=False)
            return self._own[added]


def _length(pieces: Sequence[Piece]) -> int:
    return sum(len(piece.text) for piece in pieces)
