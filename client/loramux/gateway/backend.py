"""The servers behind the gateway. Callers share one channel, and each call carries its own key."""

import math
import time
from collections.abc import AsyncGenerator
from typing import cast

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from loramux import _adapter_wire, _server_wire, _token_wire, _wire
from loramux._access import Certificate, open_aio_channel
from loramux._aio_adapters import AsyncAdapters
from loramux._channel import Routing, Targets
from loramux._instrumented_channel import Ended, InstrumentedChannel
from loramux.gateway.caller import Caller
from loramux.types import Adapter, ServerInfo
from loramux.v1 import (
    adapters_pb2,
    classification_pb2,
    embedding_pb2,
    generation_pb2,
    server_pb2,
    tokenization_pb2,
)
from loramux.v1.adapters_pb2_grpc import AdapterServiceStub
from loramux.v1.classification_pb2_grpc import ClassificationServiceStub
from loramux.v1.embedding_pb2_grpc import EmbeddingServiceStub
from loramux.v1.generation_pb2_grpc import GenerationServiceStub
from loramux.v1.server_pb2_grpc import ServerServiceStub
from loramux.v1.tokenization_pb2_grpc import TokenizationServiceStub

_FRESH_SECONDS = 1.0
"""How long server info is cached: a server takes longer than this to restart with another base."""
_MAX_KNOWN = 1024
_CHECK_SECONDS = 5.0
_SERVICE = "loramux.v1.GenerationService"

Chunks = AsyncGenerator[generation_pb2.StreamGenerateResponse, None]


class Backend:
    """Calls of servers that serve the same models.

    Each raises a `loramux.errors.LoramuxError` when it fails.
    """

    def __init__(
        self,
        targets: Targets,
        *,
        retries: bool,
        routing: Routing,
        timeout: float,
        certificate: Certificate | None = None,
        call_ended: Ended | None = None,
    ) -> None:
        """Connect to `targets` on the first call. Create and use in one event loop.

        `certificate` is presented to servers; `call_ended` is called when a call has ended.

        Raises:
            InvalidArgumentError: Keys of callers would go in plaintext to another machine; or one
                of several targets cannot be found; or there is no such routing.
            OSError: A file of CA certificates, or of the certificate, cannot be read.
        """
        self._channel = open_aio_channel(
            targets,
            key="",
            tls=None,
            certificate=certificate,
            credentials=None,
            retries=retries,
            routing=routing,
            tracer_provider=None,
            forwards=True,
            call_ended=call_ended,
        )
        self.timeout = timeout
        """Default timeout of a call, in seconds."""
        self._generation = GenerationServiceStub(self._channel)
        self._tokenization = TokenizationServiceStub(self._channel)
        self._embedding = EmbeddingServiceStub(self._channel)
        self._classification = ClassificationServiceStub(self._channel)
        self._adapters = AdapterServiceStub(self._channel)
        self._server = ServerServiceStub(self._channel)
        self._health = health_pb2_grpc.HealthStub(self._channel)
        self._known: dict[str, tuple[float, ServerInfo]] = {}
        """Key -> when and what; by key, so that an invalid one never gets another's answer."""

    async def info(self, caller: Caller) -> ServerInfo:
        """Return the server's info, cached for at most a second."""
        now = time.monotonic()
        fetched_at, known = self._known.get(caller.key, (-math.inf, None))
        if known is None or now - fetched_at > _FRESH_SECONDS:
            with _wire.raising():
                known = _server_wire.server_info(
                    await self._server.GetServerInfo(
                        server_pb2.GetServerInfoRequest(),
                        timeout=self.timeout,
                        metadata=caller.metadata,
                    )
                )
            if len(self._known) >= _MAX_KNOWN:
                self._known.clear()
            self._known[caller.key] = (now, known)
        return known

    async def is_serving(self) -> bool:
        """Return whether the server's health check reports SERVING."""
        request = health_pb2.HealthCheckRequest(service=_SERVICE)
        with _wire.raising():
            answer = await self._health.Check(request, timeout=_CHECK_SECONDS)
        return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)

    async def generate(
        self, request: generation_pb2.GenerateRequest, caller: Caller, seconds: float | None
    ) -> generation_pb2.GenerateResponse:
        """Return the whole answer to `request`, within `seconds`; None for the default timeout."""
        with _wire.raising():
            return await self._generation.Generate(
                request, timeout=self._limit(seconds), metadata=caller.metadata
            )

    async def tokenize(
        self,
        request: generation_pb2.GenerateRequest,
        caller: Caller,
        seconds: float | None,
        *,
        return_pieces: bool = False,
    ) -> tokenization_pb2.TokenizeResponse:
        """Return the tokens of the prompt of `request`, with their bytes if `return_pieces`."""
        with _wire.raising():
            return await self._tokenization.Tokenize(
                _token_wire.tokenize_request(request, return_pieces),
                timeout=self._limit(seconds),
                metadata=caller.metadata,
            )

    async def detokenize(self, request: tokenization_pb2.DetokenizeRequest, caller: Caller) -> str:
        """Return the text of tokens."""
        with _wire.raising():
            response = await self._tokenization.Detokenize(
                request, timeout=self.timeout, metadata=caller.metadata
            )
        return response.text

    async def embed(
        self, request: embedding_pb2.EmbedRequest, caller: Caller, seconds: float | None
    ) -> embedding_pb2.EmbedResponse:
        """Return the response to `request`."""
        with _wire.raising():
            return await self._embedding.Embed(
                request, timeout=self._limit(seconds), metadata=caller.metadata
            )

    async def classify(
        self,
        request: classification_pb2.ClassifyRequest,
        caller: Caller,
        seconds: float | None,
    ) -> classification_pb2.ClassifyResponse:
        """Return the response to `request`."""
        with _wire.raising():
            return await self._classification.Classify(
                request, timeout=self._limit(seconds), metadata=caller.metadata
            )

    async def stream(
        self, request: generation_pb2.GenerateRequest, caller: Caller, seconds: float | None
    ) -> Chunks:
        """Yield the chunks of the answer to `request`; closing the generator cancels the call."""
        call = self._generation.StreamGenerate(
            request, timeout=self._limit(seconds), metadata=caller.metadata
        )
        try:
            with _wire.raising():
                async for chunk in call:
                    yield chunk
        finally:
            call.cancel()

    async def adapter(self, reference: str, caller: Caller) -> Adapter:
        """Return the adapter that `reference` resolves to."""
        request = adapters_pb2.GetAdapterRequest(name=reference)
        with _wire.raising():
            response = await self._adapters.GetAdapter(
                request, timeout=self.timeout, metadata=caller.metadata
            )
            return _adapter_wire.adapter(response.adapter)

    async def adapters(self, caller: Caller) -> list[Adapter]:
        """Return the newest version of each adapter that is visible to the caller."""
        found: list[Adapter] = []
        token = ""
        with _wire.raising():
            while True:
                request = adapters_pb2.ListAdaptersRequest(
                    page_size=_adapter_wire.PAGE_SIZE, page_token=token
                )
                response = await self._adapters.ListAdapters(
                    request, timeout=self.timeout, metadata=caller.metadata
                )
                found += map(_adapter_wire.adapter, response.adapters)
                token = response.next_page_token
                if not token:
                    return found

    def channel(self, caller: Caller) -> grpc.aio.Channel:
        """Return a channel with the caller's metadata that routes calls to servers."""
        return cast(
            grpc.aio.Channel,
            cast(InstrumentedChannel, self._channel).with_metadata(caller.metadata),
        )

    async def servers(self, caller: Caller) -> list[grpc.aio.Channel]:
        """Return a channel for each server, with the caller's metadata."""
        own = cast(InstrumentedChannel, self._channel).with_metadata(caller.metadata)
        return [cast(grpc.aio.Channel, server) for server in await own.each()]

    async def adapters_of_each(self, caller: Caller) -> list[AsyncAdapters]:
        """Return an adapter client for each server, with the caller's metadata."""
        return [AsyncAdapters(server, self.timeout) for server in await self.servers(caller)]

    async def close(self) -> None:
        """Close the channel; calls in progress are cancelled."""
        await self._channel.close()

    def _limit(self, seconds: float | None) -> float:
        return self.timeout if seconds is None else seconds
