"""What a request asks to continue, as tokens: text, token ids, or a conversation."""

import asyncio
from collections import OrderedDict
from dataclasses import dataclass
from functools import partial

from tokenizers import Encoding

from loramux.errors import FailedPreconditionError, InvalidArgumentError
from loramux.v1 import generation_pb2
from loramux_adapters.added_tokens import AddedToken
from loramux_server.chat.chat import Chat
from loramux_server.chat.messages import Turn
from loramux_server.engine.messages import ModelInfo
from loramux_server.store.instructions import Instruction
from loramux_server.tokenizer import OFF_LOOP, Span, TextTokenizer

KEPT = 4
"""Tokenizers of adapters that stay in memory; they share the vocabulary of the base's."""


@dataclass(frozen=True, slots=True)
class Text:
    """A text that is read, as tokens."""

    tokens: list[int]
    places: list[Span | None]
    """Where in the text each of them is; None where it is of no text."""


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
        self._own: OrderedDict[tuple[AddedToken, ...], TextTokenizer] = OrderedDict()
        """Those of adapters, last used last."""
        self._preparing = asyncio.Lock()
        self._chat: Chat | None = None
        if model.tokenizer_json:
            self._tokenizer = TextTokenizer(model.tokenizer_json)
            self._chat = Chat(model.tokenizer_json, model.chat_template, model.special_tokens)

    async def tokenizer(self, told: Instruction) -> TextTokenizer | None:
        """Return the tokenizer of an adapter that says `told`; None where the base has none."""
        added = self._added(told)
        if not added:
            return self._tokenizer
        async with self._preparing:
            own = self._own.get(added)
            if own is None:
                assert self._tokenizer is not None
                own = await asyncio.to_thread(TextTokenizer, self._tokenizer, added)
                self._own[added] = own
                if len(self._own) > KEPT:
                    self._own.popitem(last=False)
            self._own.move_to_end(added)
            return own

    async def tokens(self, request: generation_pb2.GenerateRequest, told: Instruction) -> list[int]:
        """Return the tokens of the prompt of `request`, whose fields are checked.

        Args:
            request: It has one of prompt, prompt_token_ids and messages.
            told: What its adapter says.

        Raises:
            LoramuxError: The prompt makes no tokens, or those of another model; or the template
                makes no prompt of the messages.
        """
        if request.prompt_token_ids:
            return list(request.prompt_token_ids)
        field = "messages" if request.messages else "prompt"
        if request.messages:
            tokens = await self._of_messages(request, told)
        else:
            tokenizer = await self.tokenizer(told)
            assert tokenizer is not None
            if len(request.prompt) < OFF_LOOP:
                tokens = _of_text(request, tokenizer)
            else:
                tokens = await asyncio.to_thread(_of_text, request, tokenizer)
        if not tokens:
            raise no_tokens(field)
        return tokens

    async def placed(
        self,
        text: str,
        field: str,
        told: Instruction,
        *,
        parse_special: bool,
        add_special: bool,
    ) -> Text:
        """Return the tokens of `text`, the request field `field`, and where in it each is.

        Raises:
            InvalidArgumentError: There are none, or it cannot be tokenized.
        """
        tokenizer = await self.tokenizer(told)
        assert tokenizer is not None
        encode = partial(
            tokenizer.encode_placed, text, field, parse_special=parse_special,
            add_special=add_special,
        )  # fmt: skip
        found = encode() if len(text) < OFF_LOOP else await asyncio.to_thread(encode)
        if not found[0]:
            raise no_tokens(field)
        return Text(*found)

    async def pair(
        self,
        texts: tuple[str, str],
        fields: tuple[str, str],
        told: Instruction,
        *,
        parse_special: bool,
        add_special: bool,
    ) -> Encoding:
        """Return the tokens of two texts, the request fields `fields`, as the tokenizer joins them.

        Raises:
            InvalidArgumentError: They cannot be tokenized.
        """
        tokenizer = await self.tokenizer(told)
        assert tokenizer is not None
        encode = partial(
            tokenizer.encode_pair, texts, fields, parse_special=parse_special,
            add_special=add_special,
        )  # fmt: skip
        is_short = sum(map(len, texts)) < OFF_LOOP
        return encode() if is_short else await asyncio.to_thread(encode)

    async def close(self) -> None:
        """End the processes that render templates."""
        if self._chat:
            await self._chat.close()

    def _added(self, told: Instruction) -> tuple[AddedToken, ...]:
        """Return the tokens of an adapter that the base's tokenizer lacks."""
        return self._tokenizer.lacking(told.added_tokens) if self._tokenizer else ()

    async def _of_messages(
        self, request: generation_pb2.GenerateRequest, told: Instruction
    ) -> list[int]:
        assert self._chat is not None
        template = told.chat_template
        if self._added(told):
            raise FailedPreconditionError(
                "the adapter has tokens of its own, which messages are not made of; give a prompt",
                reason="CHAT_TEMPLATE_MISSING",
                field="messages",
            )
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


def no_tokens(field: str) -> InvalidArgumentError:
    """Return the error of a text of the request field `field` that is none to the tokenizer."""
    return InvalidArgumentError(
        f"{field} has no tokens: the tokenizer makes none of this text",
        reason="INVALID_FIELD",
        field=field,
    )


def _of_text(request: generation_pb2.GenerateRequest, tokenizer: TextTokenizer) -> list[int]:
    return tokenizer.encode(
        request.prompt,
        parse_special=request.parse_special_tokens,
        add_special=(
            request.add_special_tokens if request.HasField("add_special_tokens") else True
        ),
    )
