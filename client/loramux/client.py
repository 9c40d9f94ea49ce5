"""The blocking client."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self, Unpack

import grpc

from loramux import _wire
from loramux._upload import Progress, open_upload
from loramux.types import Adapter, Chunk, Generation, SamplingOptions, ServerInfo
from loramux.v1 import adapters_pb2, server_pb2
from loramux.v1.adapters_pb2_grpc import AdapterServiceStub
from loramux.v1.generation_pb2_grpc import GenerationServiceStub
from loramux.v1.server_pb2_grpc import ServerServiceStub

__all__ = ["Client"]

DEFAULT_TIMEOUT = 600.0


class Client:
    """A connection to a loramux server. Threads may share it; close it or use it in a `with`.

    Every call raises a `loramux.errors.LoramuxError` when it fails.
    """

    def __init__(
        self,
        target: str,
        *,
        timeout: float = DEFAULT_TIMEOUT,
        credentials: grpc.ChannelCredentials | None = None,
    ) -> None:
        """Connect to `target` when the first call is made.

        Args:
            target: `HOST:PORT` of the server.
            timeout: Seconds that a call may take, unless it says otherwise.
            credentials: TLS credentials, from `grpc.ssl_channel_credentials`; None for plaintext.
        """
        options = _wire.CHANNEL_OPTIONS
        self._channel = (
            grpc.secure_channel(target, credentials, options)
            if credentials
            else grpc.insecure_channel(target, options)
        )
        self._timeout = timeout
        self._generation = GenerationServiceStub(self._channel)
        self._server = ServerServiceStub(self._channel)
        self.adapters = Adapters(self._channel, timeout)
        """The adapters that are registered with the server."""

    def generate(
        self,
        prompt: str | Sequence[int],
        *,
        adapter: str | None = None,
        timeout: float | None = None,
        request_id: str = "",
        parse_special_tokens: bool = False,
        add_special_tokens: bool = True,
        **sampling: Unpack[SamplingOptions],
    ) -> Generation:
        """Return the whole answer to `prompt`.

        Args:
            prompt: Text, or token ids of the base model.
            adapter: Name of the adapter; None for the base model alone.
            timeout: Seconds that the call may take.
            request_id: Names the request in replies and logs.
            parse_special_tokens: Let text such as `</s>` in the prompt be a control token.
            add_special_tokens: Put the tokenizer's own prefix before a text prompt.
            sampling: How tokens are chosen and when to stop.
        """
        request = _wire.generate_request(
            prompt, adapter, request_id, parse_special_tokens, add_special_tokens, **sampling
        )
        with _wire.raising():
            return _wire.generation(
                self._generation.Generate(
                    request, timeout=self._timeout if timeout is None else timeout
                )
            )

    def stream(
        self,
        prompt: str | Sequence[int],
        *,
        adapter: str | None = None,
        timeout: float | None = None,
        request_id: str = "",
        parse_special_tokens: bool = False,
        add_special_tokens: bool = True,
        **sampling: Unpack[SamplingOptions],
    ) -> Iterator[Chunk]:
        """Yield the answer to `prompt` piece by piece; closing the iterator cancels the request.

        The arguments are those of `generate`.
        """
        request = _wire.generate_request(
            prompt, adapter, request_id, parse_special_tokens, add_special_tokens, **sampling
        )
        call = self._generation.StreamGenerate(
            request, timeout=self._timeout if timeout is None else timeout
        )
        try:
            with _wire.raising():
                for response in call:
                    yield _wire.chunk(response)
        finally:
            call.cancel()

    def info(self) -> ServerInfo:
        """Return what the server is and serves."""
        with _wire.raising():
            return _wire.server_info(
                self._server.GetServerInfo(server_pb2.GetServerInfoRequest(), timeout=self._timeout)
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


class Adapters:
    """The adapters that are registered with a server."""

    def __init__(self, channel: grpc.Channel, timeout: float) -> None:
        self._service = AdapterServiceStub(channel)
        self._timeout = timeout

    def upload(
        self,
        name: str,
        path: str | Path,
        *,
        must_not_exist: bool = False,
        progress: Progress | None = None,
        timeout: float | None = None,
    ) -> Adapter:
        """Register the PEFT folder or package at `path` under `name`.

        Args:
            name: What requests will call the adapter.
            path: A folder that PEFT's `save_pretrained` wrote, or a package.
            must_not_exist: Refuse if `name` has other content; by default it is replaced for
                requests that arrive later.
            progress: Called with (bytes sent, bytes in all).
            timeout: Seconds that the call may take.
        """
        with open_upload(name, path, must_not_exist=must_not_exist) as upload, _wire.raising():
            response = self._service.UploadAdapter(
                upload.messages(progress), timeout=self._timeout if timeout is None else timeout
            )
            return _wire.adapter(response.adapter)

    def get(self, name: str) -> Adapter:
        """Return the adapter called `name`."""
        with _wire.raising():
            response = self._service.GetAdapter(
                adapters_pb2.GetAdapterRequest(name=name), timeout=self._timeout
            )
            return _wire.adapter(response.adapter)

    def list(self) -> list[Adapter]:
        """Return all adapters in the order of their names."""
        found: list[Adapter] = []
        token = ""
        with _wire.raising():
            while True:
                response = self._service.ListAdapters(
                    adapters_pb2.ListAdaptersRequest(page_size=1000, page_token=token),
                    timeout=self._timeout,
                )
                found += [_wire.adapter(adapter) for adapter in response.adapters]
                token = response.next_page_token
                if not token:
                    return found

    def delete(self, name: str) -> None:
        """Take the adapter away; requests that use it already finish with it."""
        with _wire.raising():
            self._service.DeleteAdapter(
                adapters_pb2.DeleteAdapterRequest(name=name), timeout=self._timeout
            )
