"""Messages -> tokens, by the template of an adapter or of the base model."""

import asyncio
from collections.abc import Sequence

from loramux.errors import FailedPreconditionError
from loramux_server.chat.encoder import ChatEncoder, Vocabulary
from loramux_server.chat.messages import Piece, Render, Talk
from loramux_server.chat.renderer import Renderer
from loramux_server.tokenizer import OFF_LOOP


class Chat:
    """Makes prompts of conversations for one base model.

    The base model's template has a process of its own, so that no adapter's keeps it waiting.
    """

    def __init__(
        self, tokenizer_json: str, template: str | None, special_tokens: dict[str, str]
    ) -> None:
        """Prepare; nothing is loaded or started before the first conversation.

        Args:
            tokenizer_json: The base model's tokenizer.
            template: Its template, if it has one.
            special_tokens: What templates may name, such as `bos_token`.
        """
        self._tokenizer_json = tokenizer_json
        self._template = template
        self._special_tokens = special_tokens
        self._preparing = asyncio.Lock()
        self._encoder: ChatEncoder | None = None
        self._renderers: list[Renderer] = []

    async def tokens(
        self, talk: Talk, template: str | None, *, add_generation_prompt: bool
    ) -> list[int]:
        """Return the tokens of a conversation.

        Args:
            talk: Its messages, and what comes with them.
            template: That of the adapter; None for the base model's.
            add_generation_prompt: Whether the prompt ends with what begins an answer.

        Raises:
            FailedPreconditionError: There is no template, or it fails.
            InvalidArgumentError: The template does not take the messages, or they cannot be
                tokenized.
            UnavailableError: No process for templates can be started.
        """
        pieces = await self.pieces(talk, template, add_generation_prompt=add_generation_prompt)
        encoder = await self._prepared()
        if _length(pieces) < OFF_LOOP:
            return encoder.encode(pieces)
        return await asyncio.to_thread(encoder.encode, pieces)

    async def pieces(
        self, talk: Talk, template: str | None, *, add_generation_prompt: bool
    ) -> list[Piece]:
        """Return what a template makes of a conversation; as `tokens`, before it is tokenized."""
        source = self.source(template)
        await self._prepared()
        renderer = self._renderers[0 if template is None else 1]
        return await renderer.render(Render(source, talk, add_generation_prompt))

    def source(self, template: str | None) -> str:
        """Return the template that counts: `template`, or where that is None the base model's.

        Raises:
            FailedPreconditionError: There is none.
        """
        source = self._template if template is None else template
        if source is None:
            raise FailedPreconditionError(
                "neither the adapter nor the base model has a chat template; give a prompt, or "
                "pack the adapter with --chat-template",
                reason="CHAT_TEMPLATE_MISSING",
                field="messages",
            )
        return source

    async def vocabulary(self) -> Vocabulary:
        """Return the tokens that a template may write."""
        return (await self._prepared()).vocabulary

    async def close(self) -> None:
        """End the processes."""
        for renderer in self._renderers:
            await renderer.close()

    async def _prepared(self) -> ChatEncoder:
        async with self._preparing:
            if self._encoder is None:
                # A large vocabulary takes a second.
                encoder = await asyncio.to_thread(ChatEncoder, self._tokenizer_json)
                setup = encoder.setup(self._special_tokens)
                # No caller can make the base model's template fail for others.
                self._renderers = [Renderer(setup, strikes=0), Renderer(setup)]
                self._encoder = encoder
            return self._encoder


def _length(pieces: Sequence[Piece]) -> int:
    return sum(len(piece.text) for piece in pieces)
