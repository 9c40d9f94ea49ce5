"""`/tokenize` and `/detokenize`: vLLM's request bodies to the server's requests, and back."""

from dataclasses import dataclass

import msgspec
from starlette.types import Receive, Scope, Send

from loramux import _token_wire
from loramux.gateway.backend import Backend
from loramux.gateway.body import ChatBody, ChatMessage, CompletionBody
from loramux.gateway.caller import Caller
from loramux.gateway.grpc_requests import adapter_of, chat_requests, completion_requests
from loramux.gateway.names import Names
from loramux.gateway.refusal import invalid, json_response, unsupported
from loramux.gateway.tools import Tool
from loramux.v1 import generation_pb2, tokenization_pb2

DETOKENIZE_NAMES = Names({"token_ids": "tokens"})
"""Field names of `/detokenize`."""


class TokenizeBody(msgspec.Struct, kw_only=True):
    """The body of `/tokenize`: a text or messages."""

    model: str | None = None
    """None for the base model."""
    prompt: str | None = None
    messages: list[ChatMessage] | None = None
    add_special_tokens: bool | None = None
    """For `prompt`, where None means true; chat templates add their own."""
    return_token_strs: bool = False
    add_generation_prompt: bool = True
    tools: list[Tool] = []
    chat_template_kwargs: dict[str, object] | None = None

    # loramux's own.
    parse_special_tokens: bool = False

    def request(self, base: str) -> generation_pb2.GenerateRequest:
        """Return a request with this prompt to a server whose base model is called `base`.

        Raises:
            LoramuxError: A field is invalid; the error names it.
        """
        model = base if self.model is None else self.model
        # max_tokens is 1, so that any prompt fits for which at least one token can be generated.
        if self.messages is not None:
            self._check_chat()
            chat = ChatBody(
                model=model,
                messages=self.messages,
                max_tokens=1,
                add_generation_prompt=self.add_generation_prompt,
                tools=self.tools,
                chat_template_kwargs=self.chat_template_kwargs,
            )
            return chat_requests(chat, base)[0]
        if self.prompt is None:
            raise invalid("prompt", "prompt and messages are both missing; set one of them")
        if self.tools or self.chat_template_kwargs is not None:
            field = "tools" if self.tools else "chat_template_kwargs"
            raise invalid(field, f"{field} is set; it needs messages")
        completion = CompletionBody(
            model=model,
            prompt=self.prompt,
            max_tokens=1,
            add_special_tokens=self.add_special_tokens is not False,
            parse_special_tokens=self.parse_special_tokens,
        )
        return completion_requests(completion, base, request_id="")[0]

    def _check_chat(self) -> None:
        if self.prompt is not None:
            raise invalid("prompt", "prompt and messages are both set; set only one")
        if self.add_special_tokens:
            raise unsupported(
                "add_special_tokens",
                "add_special_tokens is true; a chat template adds special tokens itself",
            )
        if self.parse_special_tokens:
            raise invalid("parse_special_tokens", "parse_special_tokens is true; it needs prompt")


class DetokenizeBody(msgspec.Struct, kw_only=True):
    """The body of `/detokenize`."""

    model: str | None = None
    """None for the base model."""
    tokens: list[int]


@dataclass(frozen=True, slots=True)
class Tokenizing:
    """A validated `/tokenize` request, ready to be answered."""

    backend: Backend
    caller: Caller
    request: generation_pb2.GenerateRequest
    returns_pieces: bool

    async def whole(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer with one object."""
        found = await self.backend.tokenize(
            self.request, self.caller, None, return_pieces=self.returns_pieces
        )
        answer = {
            "count": len(found.token_ids),
            "max_model_len": found.context_length,
            "tokens": list(found.token_ids),
            "token_strs": self._pieces(found),
        }
        await json_response(answer, self.caller.returned)(scope, receive, send)

    def _pieces(self, found: tokenization_pb2.TokenizeResponse) -> list[str] | None:
        if not self.returns_pieces:
            return None
        return [piece.decode("utf-8", "replace") for piece in found.pieces]


@dataclass(frozen=True, slots=True)
class Detokenizing:
    """A validated `/detokenize` request, ready to be answered."""

    backend: Backend
    caller: Caller
    request: tokenization_pb2.DetokenizeRequest

    @staticmethod
    def of(body: DetokenizeBody, backend: Backend, caller: Caller, base: str) -> "Detokenizing":
        """Return `body` as a request to a server whose base model is called `base`.

        Raises:
            LoramuxError: A field is invalid; the error names it.
        """
        adapter = None if body.model is None else adapter_of(body.model, base)
        request = _token_wire.detokenize_request(body.tokens, adapter, False)
        return Detokenizing(backend, caller, request)

    async def whole(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer with one object."""
        text = await self.backend.detokenize(self.request, self.caller)
        await json_response({"prompt": text}, self.caller.returned)(scope, receive, send)
