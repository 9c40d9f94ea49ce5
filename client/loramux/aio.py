"""The asynchronous client: the same methods as the blocking one, with `await`."""

from collections.abc import AsyncIterator, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Self, Unpack

import grpc

from loramux import _server_wire, _wire
from loramux._access import Certificate, Tls, open_aio_channel
from loramux._aio_adapters import AsyncAdapters
from loramux._aio_texts import AsyncTexts
from loramux._channel import Routing, Targets
from loramux.client import DEFAULT_TIMEOUT
from loramux.types import (
    Chunk,
    Generation,
    Message,
    QuarantineEntry,
    RequestOptions,
    ServerInfo,
    ServerLoad,
)
from loramux.v1 import quarantine_pb2, server_pb2
from loramux.v1.generation_pb2_grpc import GenerationServiceStub
from loramux.v1.quarantine_pb2_grpc import QuarantineServiceStub
from loramux.v1.server_pb2_grpc import ServerServiceStub

if TYPE_CHECKING:
    from opentelemetry.trace import TracerProvider

__all__ = ["AsyncClient"]


class AsyncClient(AsyncTexts):
    """A connection to a loramux server, for use in one event loop.

    Every call raises a `loramux.errors.LoramuxError` on failure.
    """

    def __init__(
        self,
        target: Targets,
        *,
        timeout: float = DEFAULT_TIMEOUT,
        key: str | None = None,
        tls: Tls = None,
        certificate: Certificate | None = None,
        credentials: grpc.ChannelCredentials | None = None,
        retries: bool = True,
        routing: Routing = "adapter",
        tracer_provider: "TracerProvider | None" = None,
    ) -> None:
        """Connect to `target` when the first call is made; see `Client`."""
        self._use(
            open_aio_channel(
                target,
                key=key,
                tls=tls,
                certificate=certificate,
                credentials=credentials,
                retries=retries,
                routing=routing,
                tracer_provider=tracer_provider,
            ),
            timeout,
        )

    @classmethod
    def _over(cls, channel: grpc.aio.Channel, timeout: float) -> Self:
        """Return a client that uses a channel owned by the caller."""
        client = cls.__new__(cls)
        client._use(channel, timeout)
        return client

    def _use(self, channel: grpc.aio.Channel, timeout: float) -> None:
        super().__init__(channel, timeout)
        self._channel = channel
        self._generation = GenerationServiceStub(self._channel)
        self._server = ServerServiceStub(self._channel)
        self._quarantine = QuarantineServiceStub(self._channel)
        self.adapters = AsyncAdapters(self._channel, timeout)
        """The adapters registered with the server."""

    async def generate(
        self,
        prompt: str | Sequence[int] | None = None,
        *,
        messages: Sequence[Message] | None = None,
        adapter: str | None = None,
        timeout: float | None = None,  # noqa: ASYNC109 - it goes along with the call
        **options: Unpack[RequestOptions],
    ) -> Generation:
        """Return the complete output for `prompt`; see `Client.generate`."""
        request = _wire.generate_request(prompt, messages, adapter, **options)
        with _wire.raising():
            return _wire.generation(
                await self._generation.Generate(
                    request, timeout=self._timeout if timeout is None else timeout
                )
            )

    async def stream(
        self,
        prompt: str | Sequence[int] | None = None,
        *,
        messages: Sequence[Message] | None = None,
        adapter: str | None = None,
        timeout: float | None = None,  # noqa: ASYNC109 - it goes along with the call
        **options: Unpack[RequestOptions],
    ) -> AsyncIterator[Chunk]:
        """Yield the output for `prompt` as it is generated; see `Client.stream`."""
        request = _wire.generate_request(prompt, messages, adapter, **options)
        call = self._generation.StreamGenerate(
            request, timeout=self._timeout if timeout is None else timeout
        )
        try:
            with _wire.raising():
                async for response in call:
                    yield _wire.chunk(response)
        finally:
            call.cancel()

    async def chat(
        self,
        messages: Sequence[Message],
        *,
        adapter: str | None = None,
        timeout: float | None = None,  # noqa: ASYNC109 - it goes along with the call
        **options: Unpack[RequestOptions],
    ) -> Generation:
        """Return the next turn of a conversation; see `Client.chat`."""
        return await self.generate(
            messages=messages,
            adapter=adapter,
            timeout=timeout,
            **options,
        )

    async def info(self) -> ServerInfo:
        """Return information about the server and its base model."""
        with _wire.raising():
            return _server_wire.server_info(
                await self._server.GetServerInfo(
                    server_pb2.GetServerInfoRequest(), timeout=self._timeout
                )
            )

    async def load(self) -> ServerLoad:
        """Return the current load of the server and its counters since the start."""
        with _wire.raising():
            return _server_wire.server_load(
                await self._server.GetServerLoad(
                    server_pb2.GetServerLoadRequest(), timeout=self._timeout
                )
            )

    async def quarantined(self) -> list[QuarantineEntry]:
        """Return the requests and adapters in quarantine."""
        with _wire.raising():
            response = await self._quarantine.ListQuarantined(
                quarantine_pb2.ListQuarantinedRequest(), timeout=self._timeout
            )
            return [_server_wire.quarantine_entry(entry) for entry in response.entries]

    async def clear_quarantined(self, key: str) -> None:
        """Release a request or adapter from quarantine: a key of `quarantined`, or a reference."""
        with _wire.raising():
            await self._quarantine.ClearQuarantined(
                quarantine_pb2.ClearQuarantinedRequest(key=key), timeout=self._timeout
            )

    async def close(self) -> None:
        """Close the connection; calls in progress are cancelled."""
        await self._channel.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.close()
