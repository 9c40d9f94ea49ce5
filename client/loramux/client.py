"""The blocking client."""

from collections.abc import Iterator, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Self, Unpack

import grpc

from loramux import _server_wire, _wire
from loramux._access import Certificate, Tls, open_channel
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
    """A connection to a loramux server.

    It is thread-safe; close it or use it in a `with`. Every call raises a
    `loramux.errors.LoramuxError` on failure.
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
        """Connect to `target` when the first call is made.

        Args:
            target: `HOST:PORT` of the server, or a list of servers with the same adapters, of which
                those that cannot serve are skipped. `dns:///HOST:PORT` stands for all addresses of
                a DNS name.
            timeout: Default timeout of a call in seconds.
            key: API key, `lmx_…`; None reads LORAMUX_API_KEY, if set.
            tls: True to verify the server with the system's CA certificates, a path to use those of
                a PEM file, False for plaintext. None takes the path in LORAMUX_CA, or else
                plaintext, over which a key is sent to this machine only.
            certificate: Client certificate to present to the server: the paths of its PEM file,
                which may also hold intermediate certificates, and of its private key. It implies
                TLS. None reads the paths in LORAMUX_CERT and LORAMUX_CERT_KEY, if set.
            credentials: Channel credentials in place of `tls` and `certificate`, as returned by
                `grpc.ssl_channel_credentials`.
            retries: Retry calls that change nothing, such as `generate`, if the server was
                unavailable before it began to answer, with backoff and a budget that limits the
                added load.
            routing: Load balancing over several servers. "adapter" (affinity): calls for one
                adapter go to the same server unless that has more than its share of the calls;
                calls of the base model go to the server with the fewest. "round_robin": servers
                take turns.
            tracer_provider: OpenTelemetry tracer provider that gets a span of each call; None uses
                the global one if the program has loaded OpenTelemetry, otherwise there are no
                spans.

        Raises:
            InvalidArgumentError: The key is malformed, or would be sent to another machine in
                plaintext; the certificate and its key cannot be used; `target` lists several
                servers and one cannot be resolved; or `routing` is unknown.
            OSError: A file that `tls` or `certificate` names cannot be read.
        """
        self._channel = open_channel(
            target,
            key=key,
            tls=tls,
            certificate=certificate,
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
        """The adapters registered with the server."""

    def generate(
        self,
        prompt: str | Sequence[int] | None = None,
        *,
        messages: Sequence[Message] | None = None,
        adapter: str | None = None,
        timeout: float | None = None,
        **options: Unpack[RequestOptions],
    ) -> Generation:
        """Return the complete output for `prompt`.

        Args:
            prompt: Text, or token ids of the base model.
            messages: A conversation instead, which the chat template of the adapter, or else of the
                base model, formats as a prompt.
            adapter: Reference to the adapter, `[tenant/]name[:tag][@sha256:digest]`, where the tag
                is a version or an alias; None for the base model alone.
            timeout: Timeout of the call in seconds.
            options: Those of `loramux.RequestOptions`: a mix of adapters in place of one, or a
                scale; how the prompt is tokenized; sampling parameters and stop conditions;
                structured output; a prediction; the decoder prompt of an encoder-decoder; and, with
                messages, tools.
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
        """Yield the output for `prompt` as it is generated; closing the iterator cancels it.

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
        """Return information about the server and its base model."""
        with _wire.raising():
            return _server_wire.server_info(
                self._server.GetServerInfo(server_pb2.GetServerInfoRequest(), timeout=self._timeout)
            )

    def load(self) -> ServerLoad:
        """Return the current load of the server and its counters since the start."""
        with _wire.raising():
            return _server_wire.server_load(
                self._server.GetServerLoad(server_pb2.GetServerLoadRequest(), timeout=self._timeout)
            )

    def quarantined(self) -> list[QuarantineEntry]:
        """Return the requests and adapters in quarantine."""
        with _wire.raising():
            response = self._quarantine.ListQuarantined(
                quarantine_pb2.ListQuarantinedRequest(), timeout=self._timeout
            )
            return [_server_wire.quarantine_entry(entry) for entry in response.entries]

    def clear_quarantined(self, key: str) -> None:
        """Release a request or adapter from quarantine: a key of `quarantined`, or a reference."""
        with _wire.raising():
            self._quarantine.ClearQuarantined(
                quarantine_pb2.ClearQuarantinedRequest(key=key), timeout=self._timeout
            )

    def close(self) -> None:
        """Close the connection; calls in progress are cancelled."""
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
