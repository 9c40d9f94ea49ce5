"""Tokenized prompts: from text, token ids, or a conversation."""

from collections.abc import Callable, Sequence

import msgspec

from loramux.errors import FailedPreconditionError
from loramux.v1 import generation_pb2
from loramux_server.access.caller import caller
from loramux_server.chat.chat import Chat
from loramux_server.chat.contents import ContentFormatDetector
from loramux_server.chat.format import EOS_TOKEN
from loramux_server.chat.messages import Conversation
from loramux_server.images.messages import PreparedImage
from loramux_server.reasoning.detector import ReasoningSyntaxDetector
from loramux_server.reasoning.syntax import MAX_OPENING
from loramux_server.reasoning.thinking import Thinking
from loramux_server.services.generation.images import (
    Preparer,
    Prompt,
    check_room,
    check_written,
    images_of,
    placed,
)
from loramux_server.services.generation.tool_use import ToolUse
from loramux_server.services.generation.truncation import last_tokens
from loramux_server.services.texts import Texts, no_tokens
from loramux_server.services.vocabularies import Vocabularies
from loramux_server.store.package_settings import PackageSettings
from loramux_server.text.tokenizer import TextTokenizer
from loramux_server.tools.detector import ToolSyntaxDetector
from loramux_server.wire.model_info import ModelInfo


class Prompts:
    """Builds prompts, and provides tokenizers."""

    def __init__(
        self,
        model: ModelInfo,
        *,
        adapter_templates: bool = True,
        preparer: Preparer | None = None,
    ) -> None:
        """Prepare; the process that renders templates starts on first use.

        Args:
            model: The base model.
            adapter_templates: Whether chat templates of adapters may be used.
            preparer: Prepares images for the model; None if images are not accepted.
        """
        self._model = model
        self._adapter_templates = adapter_templates
        self._preparer = preparer
        self._vocabularies = Vocabularies(model)
        self.texts = Texts(self._vocabularies)
        """Tokenizes texts for requests of all kinds."""
        self._chat: Chat | None = None
        if model.tokenizer_json:
            self._chat = Chat(model.tokenizer_json, model.chat_template, model.special_tokens)
            self._tool_syntaxes = ToolSyntaxDetector(self._chat, model.eos_token_ids)
            self._reasoning_syntaxes = ReasoningSyntaxDetector(self._chat)
            self._contents = ContentFormatDetector(self._chat)

    async def tokenizer(self, settings: PackageSettings) -> TextTokenizer | None:
        """Return the tokenizer for the adapter with `settings`; None if the base has none."""
        return await self._vocabularies.tokenizer(settings)

    async def tokens(
        self,
        request: generation_pb2.GenerateRequest,
        conversation: Conversation,
        settings: PackageSettings,
        most: int | None = None,
    ) -> list[int]:
        """Return the tokens of the prompt of `request`, whose fields are checked.

        Each image is a single token until `with_images`.

        Args:
            request: It has one of prompt, prompt_token_ids and messages.
            conversation: Its conversation.
            settings: Settings from its adapter's package.
            most: Number of tokens to keep, the last ones; None for all.

        Raises:
            LoramuxError: The prompt cannot be tokenized or has no tokens; or the template cannot
                render the messages, or does not support the images in them.
        """
        if request.prompt_token_ids:
            return list(request.prompt_token_ids[-most:] if most else request.prompt_token_ids)
        field = "messages" if request.messages else "prompt"
        add = False
        if request.messages:
            tokens = await self._of_messages(request, conversation, settings)
        else:
            add = request.add_special_tokens if request.HasField("add_special_tokens") else True
            tokens = await self._of_text(request, request.prompt, field, settings, add_special=add)
        if not tokens:
            raise no_tokens(field)
        if most is None or len(tokens) <= most:
            return tokens
        text = tokens
        if add:
            text = await self._of_text(request, request.prompt, field, settings)
        return last_tokens(tokens, text, most)

    async def with_images(
        self,
        request: generation_pb2.GenerateRequest,
        tokens: list[int],
        hold: Callable[[int], None],
    ) -> Prompt:
        """Return the prompt of `request`, whose fields are checked, with its images expanded.

        Args:
            request: The request.
            tokens: What `tokens` returned.
            hold: Called with the size of each image in bytes once it is known; may raise.

        Raises:
            LoramuxError: A file is not a supported image, it cannot be prepared, or the context is
                too small for all images.
        """
        preparer = self._preparer
        assert preparer is not None
        images: list[PreparedImage] = []
        for field, image in images_of(request):
            check_room(len(tokens), images, self._model)
            images.append(await preparer.prepare(image.data, field, caller().tenant))
            hold(images[-1].image.num_bytes)
        return placed(tokens, (await preparer.placeholder(caller().tenant)).token, images)

    async def predicted(
        self, request: generation_pb2.GenerateRequest, settings: PackageSettings
    ) -> list[int]:
        """Return the tokens of the predicted output of `request`, empty if it has none.

        Raises:
            InvalidArgumentError: The text cannot be tokenized.
        """
        if not request.prediction:
            return list(request.prediction_token_ids)
        # It continues the prompt, so the tokenizer's prefix is not added.
        return await self._of_text(request, request.prediction, "prediction", settings)

    async def decoder_prompt(
        self, request: generation_pb2.GenerateRequest, settings: PackageSettings
    ) -> list[int]:
        """Return the tokens of the decoder prompt of `request`, empty if it has none.

        Raises:
            InvalidArgumentError: The text cannot be tokenized.
        """
        if not request.decoder_prompt:
            return list(request.decoder_prompt_token_ids)
        return await self._of_text(request, request.decoder_prompt, "decoder_prompt", settings)

    async def tool_use(
        self,
        request: generation_pb2.GenerateRequest,
        conversation: Conversation,
        settings: PackageSettings,
    ) -> ToolUse | None:
        """Return how the answer to `request` calls tools; None if there are none.

        The arguments are those of `tokens`, which must have succeeded.

        Raises:
            LoramuxError: The template does not support tools, or writes calls in an unknown way.
        """
        if not conversation.tools:
            return None
        syntax = await self._tool_syntaxes.find(self._vocabularies.chat_format(settings))
        is_parallel = (
            request.parallel_tool_calls if request.HasField("parallel_tool_calls") else True
        )
        return ToolUse(
            syntax,
            tuple(conversation.tools),
            is_parallel,
            self._vocabularies.has_own(settings, syntax.ids),
        )

    async def thinking(
        self,
        request: generation_pb2.GenerateRequest,
        tokens: Sequence[int],
        settings: PackageSettings,
    ) -> Thinking | None:
        """Return how reasoning is separated from the answer; None if it is not.

        Args:
            request: The request.
            tokens: Tokens of its prompt.
            settings: Settings from its adapter's package.

        Raises:
            LoramuxError: There is no chat template for the messages.
        """
        is_asked = request.separate_reasoning if request.HasField("separate_reasoning") else True
        if not request.messages or not is_asked:
            return None
        syntax = await self._reasoning_syntaxes.find(self._vocabularies.chat_format(settings))
        if syntax is None:
            return None
        tokenizer = await self.tokenizer(settings)
        assert tokenizer is not None
        end = tokenizer.text_of(tokens[-MAX_OPENING:])
        return Thinking(syntax, end, self._vocabularies.has_own(settings, syntax.ids))

    async def end_token(self, settings: PackageSettings) -> int | None:
        """Return an adapter's own end token; None if it is also one of the base model's."""
        text = settings.special_tokens.get(EOS_TOKEN)
        if text is None or text == self._model.special_tokens.get(EOS_TOKEN):
            return None
        tokenizer = await self.tokenizer(settings)
        token = tokenizer.token_of(text) if tokenizer else None
        return None if token in self._model.eos_token_ids else token

    async def close(self) -> None:
        """Stop the processes that render templates and prepare images."""
        if self._chat:
            await self._chat.close()
        if self._preparer:
            await self._preparer.close()

    async def _of_text(
        self,
        request: generation_pb2.GenerateRequest,
        text: str,
        field: str,
        settings: PackageSettings,
        *,
        add_special: bool = False,
    ) -> list[int]:
        return await self.texts.tokens(
            text,
            field,
            settings,
            parse_special=request.parse_special_tokens,
            add_special=add_special,
        )

    async def _of_messages(
        self,
        request: generation_pb2.GenerateRequest,
        conversation: Conversation,
        settings: PackageSettings,
    ) -> list[int]:
        assert self._chat is not None
        if settings.chat_template is not None and not self._adapter_templates:
            raise FailedPreconditionError(
                "the adapter has its own chat template, but this server runs only that of the base "
                "model (--no-adapter-templates); give a prompt",
                reason="CHAT_TEMPLATE_MISSING",
                field="messages",
            )
        chat_format = self._vocabularies.chat_format(settings)
        if any(message.calls for message in conversation.messages):
            conversation = await self._tool_syntaxes.adapt_history(conversation, chat_format)
        if await self._contents.lists(chat_format):
            conversation = msgspec.structs.replace(conversation, lists_contents=True)
        placeholder = None
        if conversation.num_images:
            assert self._preparer is not None
            placeholder = await self._preparer.placeholder(caller().tenant)
        tokens = await self._chat.tokens(
            conversation,
            chat_format,
            add_generation_prompt=(
                request.add_generation_prompt if request.HasField("add_generation_prompt") else True
            ),
            placeholder=placeholder,
        )
        if placeholder is not None:
            check_written(tokens, placeholder.token, conversation.num_images)
        return tokens
