"""What a request asks to continue, as tokens: text, token ids, or a conversation."""

from collections.abc import Callable, Sequence

import msgspec

from loramux.errors import FailedPreconditionError
from loramux.v1 import generation_pb2
from loramux_server.access.caller import caller
from loramux_server.chat.chat import Chat
from loramux_server.chat.contents import ContentFinder
from loramux_server.chat.format import EOS_TOKEN
from loramux_server.chat.messages import Talk
from loramux_server.images.messages import PreparedImage
from loramux_server.reasoning.finder import ReasoningFinder
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
from loramux_server.services.texts import Texts, no_tokens
from loramux_server.services.vocabularies import Vocabularies
from loramux_server.store.instructions import Instruction
from loramux_server.text.tokenizer import TextTokenizer
from loramux_server.tools.finder import ToolFinder
from loramux_server.wire.model_info import ModelInfo


class Prompts:
    """Makes tokens of requests, and text of tokens."""

    def __init__(
        self,
        model: ModelInfo,
        *,
        adapter_templates: bool = True,
        preparer: Preparer | None = None,
    ) -> None:
        """Prepare; what renders templates is started when it is needed.

        Args:
            model: What is served.
            adapter_templates: Whether templates of adapters are run at all.
            preparer: Makes of images what the model takes of them; None where none are taken.
        """
        self._model = model
        self._adapter_templates = adapter_templates
        self._preparer = preparer
        self._vocabularies = Vocabularies(model)
        self.texts = Texts(self._vocabularies)
        """Of requests of all kinds."""
        self._chat: Chat | None = None
        if model.tokenizer_json:
            self._chat = Chat(model.tokenizer_json, model.chat_template, model.special_tokens)
            self._tool_syntaxes = ToolFinder(self._chat, model.eos_token_ids)
            self._reasoning_syntaxes = ReasoningFinder(self._chat)
            self._contents = ContentFinder(self._chat)

    async def tokenizer(self, told: Instruction) -> TextTokenizer | None:
        """Return the tokenizer of an adapter that says `told`; None where the base has none."""
        return await self._vocabularies.tokenizer(told)

    async def tokens(
        self, request: generation_pb2.GenerateRequest, talk: Talk, told: Instruction
    ) -> list[int]:
        """Return the tokens of the prompt of `request`, whose fields are checked.

        A token stands for each image, until `with_images`.

        Args:
            request: It has one of prompt, prompt_token_ids and messages.
            talk: Its conversation.
            told: What its adapter says.

        Raises:
            LoramuxError: The prompt makes no tokens, or those of another model; or the template
                makes no prompt of the messages, or does not know of the images in them.
        """
        if request.prompt_token_ids:
            return list(request.prompt_token_ids)
        field = "messages" if request.messages else "prompt"
        if request.messages:
            tokens = await self._of_messages(request, talk, told)
        else:
            add = request.add_special_tokens if request.HasField("add_special_tokens") else True
            tokens = await self._of_text(request, request.prompt, field, told, add_special=add)
        if not tokens:
            raise no_tokens(field)
        return tokens

    async def with_images(
        self,
        request: generation_pb2.GenerateRequest,
        tokens: list[int],
        hold: Callable[[int], None],
    ) -> Prompt:
        """Return the prompt of `request`, whose fields are checked, with its images in it.

        Args:
            request: The request.
            tokens: What `tokens` returned.
            hold: Told how many bytes each of them takes, once it is known; may raise.

        Raises:
            LoramuxError: A file holds no image that is taken, it cannot be prepared, or the context
                is too small for all of them.
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
        self, request: generation_pb2.GenerateRequest, told: Instruction
    ) -> list[int]:
        """Return the tokens that `request` predicts, if it does; its adapter says `told`.

        Raises:
            InvalidArgumentError: The text cannot be tokenized.
        """
        if not request.prediction:
            return list(request.prediction_token_ids)
        # It goes on after the prompt: the tokenizer's own prefix does not come there.
        return await self._of_text(request, request.prediction, "prediction", told)

    async def decoder_prompt(
        self, request: generation_pb2.GenerateRequest, told: Instruction
    ) -> list[int]:
        """Return the tokens with which `request` lets a text begin that is written.

        Raises:
            InvalidArgumentError: The text cannot be tokenized.
        """
        if not request.decoder_prompt:
            return list(request.decoder_prompt_token_ids)
        return await self._of_text(request, request.decoder_prompt, "decoder_prompt", told)

    async def tool_use(
        self, request: generation_pb2.GenerateRequest, talk: Talk, told: Instruction
    ) -> ToolUse | None:
        """Return what the tools of a request, whose messages make tokens, make of its answer.

        The arguments are those of `tokens`. None where there are no tools.

        Raises:
            LoramuxError: The template knows of none, or writes calls in an unknown way.
        """
        if not talk.tools:
            return None
        syntax = await self._tool_syntaxes.find(self._vocabularies.chat_format(told))
        is_parallel = (
            request.parallel_tool_calls if request.HasField("parallel_tool_calls") else True
        )
        return ToolUse(
            syntax, tuple(talk.tools), is_parallel, self._vocabularies.has_own(told, syntax.ids)
        )

    async def thinking(
        self, request: generation_pb2.GenerateRequest, tokens: Sequence[int], told: Instruction
    ) -> Thinking | None:
        """Return how what is thought is told apart in the answer; None where it is not.

        Args:
            request: The request.
            tokens: Those of its prompt.
            told: What its adapter says.

        Raises:
            LoramuxError: The messages have no template.
        """
        is_asked = request.separate_reasoning if request.HasField("separate_reasoning") else True
        if not request.messages or not is_asked:
            return None
        syntax = await self._reasoning_syntaxes.find(self._vocabularies.chat_format(told))
        if syntax is None:
            return None
        tokenizer = await self.tokenizer(told)
        assert tokenizer is not None
        end = tokenizer.text_of(tokens[-MAX_OPENING:])
        return Thinking(syntax, end, self._vocabularies.has_own(told, syntax.ids))

    async def end_token(self, told: Instruction) -> int | None:
        """Return the token with which an adapter ends a text; None if its base model does, too."""
        text = told.special_tokens.get(EOS_TOKEN)
        if text is None or text == self._model.special_tokens.get(EOS_TOKEN):
            return None
        tokenizer = await self.tokenizer(told)
        token = tokenizer.token_of(text) if tokenizer else None
        return None if token in self._model.eos_token_ids else token

    async def close(self) -> None:
        """End the processes that render templates and prepare images."""
        if self._chat:
            await self._chat.close()
        if self._preparer:
            await self._preparer.close()

    async def _of_text(
        self, request: generation_pb2.GenerateRequest, text: str, field: str, told: Instruction, *,
        add_special: bool = False,
    ) -> list[int]:  # fmt: skip
        return await self.texts.tokens(
            text, field, told, parse_special=request.parse_special_tokens, add_special=add_special
        )

    async def _of_messages(
        self, request: generation_pb2.GenerateRequest, talk: Talk, told: Instruction
    ) -> list[int]:
        assert self._chat is not None
        if told.chat_template is not None and not self._adapter_templates:
            raise FailedPreconditionError(
                "the adapter has a chat template of its own, and this server runs that of the base "
                "model alone (--no-adapter-templates); give a prompt",
                reason="CHAT_TEMPLATE_MISSING",
                field="messages",
            )
        chat_format = self._vocabularies.chat_format(told)
        if any(turn.calls for turn in talk.turns):
            talk = await self._tool_syntaxes.as_taken(talk, chat_format)
        if await self._contents.lists(chat_format):
            talk = msgspec.structs.replace(talk, lists_contents=True)
        placeholder = None
        if talk.num_images:
            assert self._preparer is not None
            placeholder = await self._preparer.placeholder(caller().tenant)
        tokens = await self._chat.tokens(
            talk,
            chat_format,
            add_generation_prompt=(
                request.add_generation_prompt if request.HasField("add_generation_prompt") else True
            ),
            placeholder=placeholder,
        )
        if placeholder is not None:
            check_written(tokens, placeholder.token, talk.num_images)
        return tokens
