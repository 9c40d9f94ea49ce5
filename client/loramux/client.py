"""The blocking client."""

from collections.abc import Iterator, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Self, Unpack

import grpc

from loramux import _server_wire, _wire
from loramux._access import Tls, open_channel
from loramux._adapters import Adapters
from loramux._channel import Routing, Targets
from loramux._texts import Texts
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

__all__ = ["Client"]

DEFAULT_TIMEOUT = 600.0


class Client(Texts):
    """A connection to a loramux server. Threads may share it; close it or use it in a `with`.

    Every call raises a `loramux.errors.LoramuxError` when it fails.
    """

    def __init__(
        self,
        target: Targets,
        *,
        timeout: float = DEFAULT_TIMEOUT,
        key: str | None = None,
        tls: Tls = None,
        credentials: grpc.ChannelCredentials | None = None,
        retries: bool = True,
        routing: Routing = "adapter",
        tracer_provider: "TracerProvider | None" = None,
    ) -> None:
        """Connect to `target` when the first call is made.

        Args:
            target: `HOST:PORT` of the server, or a list of several that serve the same, among which
                who cannot serve is left out. `dns:///HOST:PORT` is all for which the name stands.
            timeout: Seconds that a call may take, unless it says otherwise.
            key: API key, `lmx_…`; None takes the one in LORAMUX_API_KEY, if there is one.
            tls: True to trust the authorities of the system, a path for those of a PEM file, False
                 for plaintext; None takes the path in LORAMUX_CA, or else plaintext, in which a key
                 goes to this machine alone.
            credentials: In place of `tls`, what `grpc.ssl_channel_credentials` returns, such as
                 with a certificate of the client.
            retries: Make calls that change nothing again where the server was away before it began
                to answer; with patience, and not so often that it would add much to its load.
            routing: How calls spread over several servers. "adapter": those for one adapter go to
                one server as long as that has no more than its part of the calls, and calls of the
                base model to whoever has the fewest. "round_robin": all take turns.
            tracer_provider: OpenTelemetry's, which gets a span of each call; None takes the global
                one where the program has loaded OpenTelemetry, and makes no spans elsewhere.

        Raises:
            InvalidArgumentError: The key cannot be one, or would go in plaintext to another
                machine; `target` names several, and one of them cannot be found; or there is no
                such `routing`.
            OSError: The file that `tls` names cannot be read.
        """
        self._channel = open_channel(
            target,
            key=key,
            tls=tls,
            credentials=credentials,
            retries=retries,
            routing=routing,
            tracer_provider=tracer_provider,
        )
        super().__init__(self._channel, timeout)
        self._generation = GenerationServiceStub(self._channel)
        self._server = ServerServiceStub(self._channel)
        self._quarantine = QuarantineServiceStub(self._channel)
        self.adapters = Adapters(self._channel, timeout)
        """The adapters that are registered with the server."""

    def generate(
        self,
        prompt: str | Sequence[int] | None = None,
        *,
        messages: Sequence[Message] | None = None,
        adapter: str | None = None,
        timeout: float | None = None,
        **options: Unpack[RequestOptions],
    ) -> Generation:
        """Return the whole answer to `prompt`.

        Args:
            prompt: Text, or token ids of the base model.
            messages: A conversation instead, of which the chat template of the adapter, or else of
                the base model, makes the prompt.
            adapter: Reference to the adapter, `[tenant/]name[:tag][@sha256:digest]`, where the tag
                is a version or an alias; None for the base model alone.
            timeout: Seconds that the call may take.
            options: Those of `loramux.RequestOptions`: a mix of adapters in place of one, or how
                much that one changes; what becomes of the prompt; how tokens are chosen and when to
                stop; what is predicted of them; what the text begins with, where the base model
                writes another; and with messages, tools.
        """
        request = _wire.generate_request(prompt, messages, adapter, **options)
        with _wire.raising():
            return _wire.generation(
                self._generation.Generate(
                    request, timeout=self._timeout if timeout is None else timeout
                )
            )

    def stream(
        self,
        prompt: str | Sequence[int] | None = None,
        *,
        messages: Sequence[Message] | None = None,
        adapter: str | None = None,
        timeout: float | None = None,
        **options: Unpack[RequestOptions],
    ) -> Iterator[Chunk]:
        """Yield the answer to `prompt` piece by piece; closing the iterator cancels the request.

        The arguments are those of `generate`.
        """
        request = _wire.generate_request(prompt, messages, adapter, **options)
        call = self._generation.StreamGenerate(
            request, timeout=self._timeout if timeout is None else timeout
        )
        try:
            with _wire.raising():
                for response in call:
                    yield _wire.chunk(response)
        finally:
            call.cancel()

    def chat(
        self,
        messages: Sequence[Message],
        *,
        adapter: str | None = None,
        timeout: float | None = None,
        **options: Unpack[RequestOptions],
    ) -> Generation:
        """Return the next turn of a conversation; the arguments are those of `generate`."""
        return self.generate(
            messages=messages,
            adapter=adapter,
            timeout=timeout,
            **options,
        )

    def info(self) -> ServerInfo:
        """Return what the server is and serves."""
        with _wire.raising():
            return _server_wire.server_info(
                self._server.GetServerInfo(server_pb2.GetServerInfoRequest(), timeout=self._timeout)
            )

    def load(self) -> ServerLoad:
        """Return what the server holds now and what it did since it started."""
        with _wire.raising():
            return _server_wire.server_load(
                self._server.GetServerLoad(server_pb2.GetServerLoadRequest(), timeout=self._timeout)
            )

    def quarantined(self) -> list[QuarantineEntry]:
        """Return the requests and adapters that the server does not run any more."""
        with _wire.raising():
            response = self._quarantine.ListQuarantined(
                quarantine_pb2.ListQuarantinedRequest(), timeout=self._timeout
            )
            return [_server_wire.quarantine_entry(entry) for entry in response.entries]

    def clear_quarantined(self, key: str) -> None:
        """Let a request or adapter run again: a key of `quarantined`, or a reference."""
        with _wire.raising():
            self._quarantine.ClearQuarantined(
                quarantine_pb2.ClearQuarantinedRequest(key=key), timeout=self._timeout
            )

    def close(self) -> None:
        """Close the connection; calls under way are cancelled."""
        self._channel.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()
