"""The routes of the gateway."""

from collections.abc import AsyncIterator, Callable, Collection, Sequence
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Protocol, TypeVar

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from loramux.gateway import anthropic
from loramux.gateway.adapters import adapter_routes
from loramux.gateway.answering import Answering, CancelOnDisconnect
from loramux.gateway.answers import Answers
from loramux.gateway.backend import Backend
from loramux.gateway.body import Body, ChatBody, CompletionBody, StreamOptions
from loramux.gateway.caller import Caller, caller_of
from loramux.gateway.classification import ClassificationBody
from loramux.gateway.classify import ClassifyBody, Classifying
from loramux.gateway.connected import Connected
from loramux.gateway.console import Console
from loramux.gateway.embeddings import Embedding, EmbeddingBody
from loramux.gateway.grpc_requests import chat_requests, completion_requests
from loramux.gateway.handlers import HANDLERS
from loramux.gateway.hosts import KnownHosts
from loramux.gateway.lora_adapters import LoadBody, LoraAdapters, UnloadBody
from loramux.gateway.lora_root import LoraRoot
from loramux.gateway.models import adapter_model, base_model, models, reported
from loramux.gateway.names import Names
from loramux.gateway.parsing import parse
from loramux.gateway.prompt_echo import PromptOptions
from loramux.gateway.reading import MAX_BODY_BYTES, read
from loramux.gateway.refusal import json_response, plain_refusal
from loramux.gateway.responses import respond
from loramux.gateway.scores import RerankBody, Reranking, ScoreBody, Scoring
from loramux.gateway.styles import ChatStyle, CompletionStyle, Style
from loramux.gateway.tokenizing import (
    DETOKENIZE_NAMES,
    DetokenizeBody,
    Detokenizing,
    TokenizeBody,
    Tokenizing,
)
from loramux.v1 import generation_pb2

B = TypeVar("B", bound=Body)
S = TypeVar("S", bound=EmbeddingBody | ClassificationBody)
ToRequests = Callable[[B, str, str], list[generation_pb2.GenerateRequest]]


class Whole(Protocol):
    """A request that is answered with one object."""

    async def whole(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer."""


class Gateway:
    """The handlers of the routes, which call the server."""

    def __init__(
        self,
        open_backend: Callable[[], Backend],
        lora_root: LoraRoot | None,
        connected_by: Sequence[Path],
    ) -> None:
        """Initialize; `open_backend` is called in the event loop that serves."""
        self._connecting = partial(Connected.opened, open_backend, connected_by)
        self._lora_adapters = LoraAdapters(lora_root)
        self._connected: Connected | None = None
        self.messages = anthropic.Messages(lambda: self.backend, self._most_bytes)
        """`/v1/messages` of Anthropic's API."""

    @asynccontextmanager
    async def lifespan(self, app: Starlette) -> AsyncIterator[None]:
        """Stay connected to the servers for the block."""
        async with self._connecting() as self._connected:
            yield

    @property
    def backend(self) -> Backend:
        """The servers behind the gateway."""
        assert self._connected is not None
        return self._connected.backend

    async def chat(self, request: Request) -> CancelOnDisconnect:
        """`POST /v1/chat/completions`."""
        return await self._completions(
            request,
            ChatBody,
            lambda body, base, request_id: chat_requests(body, base),
            lambda options: ChatStyle(),
        )

    async def completions(self, request: Request) -> CancelOnDisconnect:
        """`POST /v1/completions`."""
        return await self._completions(
            request, CompletionBody, completion_requests, CompletionStyle
        )

    async def responses(self, request: Request) -> CancelOnDisconnect:
        """`POST /v1/responses`."""
        most_bytes = partial(self._most_bytes, caller_of(request.scope))
        return await respond(request, self.backend, most_bytes)

    async def embeddings(self, request: Request) -> CancelOnDisconnect:
        """`POST /v1/embeddings`."""
        return await self._read(request, EmbeddingBody, Embedding.of)

    async def classify(self, request: Request) -> CancelOnDisconnect:
        """`POST /classify`."""
        return await self._read(request, ClassifyBody, Classifying.of)

    async def score(self, request: Request) -> CancelOnDisconnect:
        """`POST /score`."""
        return await self._read(request, ScoreBody, Scoring.of)

    async def rerank(self, request: Request) -> CancelOnDisconnect:
        """`POST /rerank`."""
        return await self._read(request, RerankBody, Reranking.of)

    async def tokenize(self, request: Request) -> CancelOnDisconnect:
        """`POST /tokenize`."""
        caller = caller_of(request.scope)
        body = parse(await read(request, partial(self._most_bytes, caller)), TokenizeBody)
        server = await self.backend.info(caller)
        if body.model is not None:
            body.model = reported(body.model, server)
        grpc_request = body.request(server.base_model)
        return CancelOnDisconnect(
            Tokenizing(
                self.backend, caller, grpc_request, returns_pieces=body.return_token_strs
            ).whole
        )

    async def detokenize(self, request: Request) -> CancelOnDisconnect:
        """`POST /detokenize`."""
        request.state.names = DETOKENIZE_NAMES
        caller = caller_of(request.scope)
        body = parse(await read(request), DetokenizeBody)
        server = await self.backend.info(caller)
        if body.model is not None:
            body.model = reported(body.model, server)
        return CancelOnDisconnect(
            Detokenizing.of(body, self.backend, caller, server.base_model).whole
        )

    async def load_lora_adapter(self, request: Request) -> Response:
        """`POST /v1/load_lora_adapter`."""
        body = parse(await read(request), LoadBody)
        return await self._lora_adapters.load(body, self.backend, caller_of(request.scope))

    async def unload_lora_adapter(self, request: Request) -> Response:
        """`POST /v1/unload_lora_adapter`."""
        body = parse(await read(request), UnloadBody)
        return await self._lora_adapters.unload(body, self.backend, caller_of(request.scope))

    async def models(self, request: Request) -> Response:
        """`GET /v1/models`."""
        caller = caller_of(request.scope)
        server = await self.backend.info(caller)
        found = models(server, await self.backend.adapters(caller))
        if anthropic.is_anthropic(request.scope):
            found = anthropic.listed(found)
        return json_response(found, caller.returned)

    async def model(self, request: Request) -> Response:
        """`GET /v1/models/{id}`."""
        caller, name = caller_of(request.scope), request.path_params["id"]
        server = await self.backend.info(caller)
        if reported(name, server) == server.base_model:
            found = base_model(server, name)
        else:
            found = adapter_model(await self.backend.adapter(name, caller), server, name)
        if anthropic.is_anthropic(request.scope):
            found = anthropic.as_model(found)
        return json_response(found, caller.returned)

    async def health(self, request: Request) -> Response:
        """`GET /health`: whether the server accepts requests; needs no key."""
        caller = caller_of(request.scope)
        if await self.backend.is_serving():
            return json_response({"status": "ok"}, caller.returned)
        return plain_refusal(503, "the server is not serving", "not_serving", caller)

    async def _most_bytes(self, caller: Caller) -> int:
        """Return the size limit of a body with images; fails if the caller's key is invalid."""
        server = await self.backend.info(caller)
        of_images = max(0, server.max_request_bytes - MAX_BODY_BYTES)
        return MAX_BODY_BYTES + -(-of_images // 3) * 4  # base64

    async def _read(
        self, request: Request, kind: type[S], answering: Callable[[S, Backend, Caller, str], Whole]
    ) -> CancelOnDisconnect:
        """Answer a request that embeds or classifies texts."""
        body = parse(await read(request), kind)
        caller = caller_of(request.scope)
        server = await self.backend.info(caller)
        body.model = reported(body.model, server)
        return CancelOnDisconnect(answering(body, self.backend, caller, server.base_model).whole)

    async def _completions(
        self,
        request: Request,
        kind: type[B],
        to_requests: ToRequests[B],
        make_style: Callable[[PromptOptions], Style],
    ) -> CancelOnDisconnect:
        caller = caller_of(request.scope)
        body = parse(await read(request, partial(self._most_bytes, caller)), kind)
        request.state.names = Names(body.called)
        server = await self.backend.info(caller)
        body.model = reported(body.model, server)
        requests = to_requests(body, server.base_model, caller.request_id)
        body.of_prompts.check(server)
        answering = Answering(
            backend=self.backend,
            caller=caller.with_num_calls(len(requests)),
            requests=requests,
            answers=Answers(
                make_style(body.of_prompts),
                request_id=caller.request_id,
                model=body.model,
                server=server,
                num_completions=1 if body.n is None else body.n,
                return_token_ids=body.return_token_ids,
                stream_options=body.stream_options or StreamOptions(),
                requests=requests,
                of_prompts=body.of_prompts,
            ),
            seconds=body.timeout,
        )
        return CancelOnDisconnect(answering.events if body.stream else answering.whole)


def make_app(
    open_backend: Callable[[], Backend],
    hosts: Collection[str] | None,
    *,
    console: Console | None = None,
    lora_root: LoraRoot | None = None,
    connected_by: Sequence[Path] = (),
) -> Starlette:
    """Return the ASGI application.

    Args:
        open_backend: Connects to the servers; called in the event loop that serves.
        hosts: Values that `Host` may have in addition to loopback names; None for any value.
        console: The web console; None for none.
        lora_root: Below which folder callers may name adapters by path; None to accept no paths.
        connected_by: Files that `open_backend` reads; it is called again when one changes.
    """
    gateway = Gateway(open_backend, lora_root, connected_by)
    app = Starlette(
        routes=[
            Route("/v1/chat/completions", gateway.chat, methods=["POST"]),
            Route("/v1/completions", gateway.completions, methods=["POST"]),
            Route("/v1/responses", gateway.responses, methods=["POST"]),
            Route("/v1/embeddings", gateway.embeddings, methods=["POST"]),
            *(
                Route(before + path, answer, methods=["POST"])
                for path, answer, places in (
                    ("/classify", gateway.classify, ("", "/v1")),
                    ("/score", gateway.score, ("", "/v1")),
                    ("/rerank", gateway.rerank, ("", "/v1", "/v2")),
                )
                for before in places
            ),
            Route("/tokenize", gateway.tokenize, methods=["POST"]),
            Route("/detokenize", gateway.detokenize, methods=["POST"]),
            Route("/v1/load_lora_adapter", gateway.load_lora_adapter, methods=["POST"]),
            Route("/v1/unload_lora_adapter", gateway.unload_lora_adapter, methods=["POST"]),
            *gateway.messages.routes,
            *adapter_routes(lambda: gateway.backend),
            Route("/v1/models", gateway.models),
            Route("/v1/models/{id:path}", gateway.model),
            Route("/health", gateway.health),
            *(console.routes(lambda: gateway.backend) if console else ()),
        ],
        exception_handlers=HANDLERS,
        middleware=[] if hosts is None else [Middleware(KnownHosts, more=hosts)],
        lifespan=gateway.lifespan,
    )
    app.router.redirect_slashes = False  # would redirect to whatever host `Host` names
    return app
