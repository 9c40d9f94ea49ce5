"""What a request asks to continue, as tokens: text, token ids, or a conversation."""

import asyncio
from collections.abc import Sequence

from loramux.errors import FailedPreconditionError, InvalidArgumentError
from loramux.v1 import generation_pb2
from loramux_server.chat.chat import Chat
from loramux_server.chat.messages import Turn
from loramux_server.engine.messages import ModelInfo
from loramux_server.services.limits import check_tokens
from loramux_server.tokenizer import OFF_LOOP, TextDecoder, TextTokenizer


class Prompts:
    """Makes tokens of requests, and text of tokens."""

    def __init__(self, model: ModelInfo, *, adapter_templates: bool = True) -> None:
        """Prepare; what renders templates is started when it is needed.

        Args:
            model: What is served.
            adapter_templates: Whether templates of adapters are run at all.
        """
        self._model = model
        self._adapter_templates = adapter_templates
        self._tokenizer: TextTokenizer | None = None
        self._chat: Chat | None = None
        if model.tokenizer_json:
            self._tokenizer = TextTokenizer(model.tokenizer_json)
            self._chat = Chat(model.tokenizer_json, model.chat_template, model.special_tokens)

    async def tokens(
        self, request: generation_pb2.GenerateRequest, template: str | None
    ) -> list[int]:
        """Return the tokens of the prompt of `request`, whose fields are checked.

        Args:
            request: It has one of prompt, prompt_token_ids and messages.
            template: The chat template of its adapter, if that has one.

        Raises:
            LoramuxError: The prompt makes no tokens, or those of another model; or the template
                makes no prompt of the messages.
        """
        if request.prompt_token_ids:
            return list(request.prompt_token_ids)
        field = "messages" if request.messages else "prompt"
        if request.messages:
            tokens = await self._of_messages(request, template)
        elif len(request.prompt) < OFF_LOOP:
            tokens = self._of_text(request)
        else:
            tokens = await asyncio.to_thread(self._of_text, request)
        if not tokens:
            raise InvalidArgumentError(
                f"{field} has no tokens: the tokenizer makes none of this text",
                reason="INVALID_FIELD",
                field=field,
            )
        # A tokenizer may know more tokens than the model has.
        check_tokens(field, tokens, self._model)
        return tokens

    def decoder(self, prompt: Sequence[int], *, skip_special: bool) -> TextDecoder | None:
        """Return a decoder for what follows `prompt`; None where the base has no tokenizer."""
        if self._tokenizer is None:
            return None
        return self._tokenizer.decoder(prompt, skip_special=skip_special)

    async def close(self) -> None:
        """End the processes that render templates."""
        if self._chat:
            await self._chat.close()

    def _of_text(self, request: generation_pb2.GenerateRequest) -> list[int]:
        assert self._tokenizer is not None
        return self._tokenizer.encode(
            request.prompt,
            parse_special=request.parse_special_tokens,
            add_special=(
                request.add_special_tokens if request.HasField("add_special_tokens") else True
            ),
        )

    async def _of_messages(
        self, request: generation_pb2.GenerateRequest, template: str | None
    ) -> list[int]:
        assert self._chat is not None
        if template is not None and not self._adapter_templates:
            raise FailedPreconditionError(
                "the adapter has a chat template of its own, and this server runs that of the base "
                "model alone (--no-adapter-templates); give a prompt",
                reason="CHAT_TEMPLATE_MISSING",
                field="messages",
            )
        return await self._chat.tokens(
            [Turn(message.role, message.content) for message in request.messages],
            template,
            add_generation_prompt=(
                request.add_generation_prompt if request.HasField("add_generation_prompt") else True
            ),
        )
