"""Forwarding calls that change adapters from a replica to its primary."""

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

from google.protobuf.descriptor import MethodDescriptor, ServiceDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass

from loramux import _wire
from loramux.errors import FailedPreconditionError, LoramuxError, UnavailableError
from loramux_server.replica.mirror import TROUBLES, Mirror
from loramux_server.replica.primary import Primary
from loramux_server.store.reference import full_name, parse_reference
from loramux_server.transport.rpc import Context, Service

_log = logging.getLogger(__name__)

METHODS = frozenset({
    "loramux.v1.AdapterService.UploadAdapter",
    "loramux.v1.AdapterService.ImportAdapter",
    "loramux.v1.AdapterService.DeleteAdapter",
    "loramux.v1.AdapterService.SetAdapterTtl",
    "loramux.v1.UploadService.StartUpload",
    "loramux.v1.UploadService.SendChunks",
    "loramux.v1.UploadService.FinishUpload",
    "loramux.v1.AliasService.SetAlias",
    "loramux.v1.AliasService.DeleteAlias",
    "loramux.v1.AliasService.RollBackAlias",
    # Only the primary has the history of alias moves.
    "loramux.v1.AliasService.ListAliasMoves",
})  # fmt: skip
"""The methods that are forwarded."""
_SHOWN = ("authorization", "traceparent", "tracestate")
"""Metadata of the caller that is forwarded."""
_HOP = "loramux-forwarded"
"""Metadata that marks a call as forwarded by a replica."""
PATIENCE = 10.0
"""Most seconds that an answer waits until the replica has the change, too."""


class Forwarding:
    """Forwards calls with the caller's own key, then mirrors what they changed."""

    def __init__(self, primary: Primary, mirror: Mirror) -> None:
        self._primary = primary
        self._mirror = mirror

    def over(self, service: Service) -> Service:
        """Return `service` with the methods of METHODS forwarded; itself if it has none of them."""
        if any(method.full_name in METHODS for method in service.descriptor.methods):
            return _Forwarded(service, self._behaviour)
        return service

    def _behaviour(self, method: MethodDescriptor) -> Callable[[Any, Context], Awaitable[Message]]:
        path = f"/{method.containing_service.full_name}/{method.name}"
        coding: Any = {
            "request_serializer": GetMessageClass(method.input_type).SerializeToString,
            "response_deserializer": GetMessageClass(method.output_type).FromString,
        }
        channel = self._primary.plain
        make = channel.stream_unary if method.client_streaming else channel.unary_unary
        call = make(path, **coding)

        async def forward(request: Any, context: Context) -> Message:  # noqa: ANN401
            sent = _Requests(request) if method.client_streaming else None
            message: Any = request if sent is None else aiter(sent)
            metadata = context.invocation_metadata() or ()
            if any(name == _HOP for name, _ in metadata):
                raise FailedPreconditionError(
                    "this server is itself a replica; send changes to its primary",
                    reason="IS_REPLICA",
                )
            shown = [*filter(self._is_forwarded, metadata), (_HOP, "1")]
            try:
                await self._mirror.check_lineage()
                with _wire.raising():
                    response: Message = await call(
                        message, metadata=shown, timeout=context.time_remaining()
                    )
            except (LoramuxError, asyncio.CancelledError) as error:
                if sent and sent.error:  # the caller's stream failed, not the primary
                    raise sent.error from None
                if isinstance(error, UnavailableError) and not error.reason:
                    # gRPC's own error, whose message would disclose the primary's address.
                    raise UnavailableError("the primary does not answer") from None
                raise
            await self._take_in(request, response)
            return response

        return forward

    def _is_forwarded(self, pair: tuple[str, str | bytes]) -> bool:
        return pair[0] in _SHOWN and (pair[0] != "authorization" or self._primary.shows_keys)

    async def _take_in(self, request: Message, response: Message) -> None:
        """Mirror what the primary changed. If that takes too long or fails, log it and go on."""
        adapter = getattr(response, "adapter", None)
        if adapter is not None and adapter.name:
            name = full_name(adapter.tenant, adapter.name)
        elif named := getattr(request, "name", ""):
            reference = parse_reference(named, "name")
            name = full_name(reference.tenant, reference.name)
        else:
            return
        try:
            async with asyncio.timeout(PATIENCE):
                await self._mirror.refresh(name)
        except TimeoutError:
            _log.warning(
                "%s will be copied from the primary later: copying takes more than %g s",
                name,
                PATIENCE,
            )
        except TROUBLES as error:
            _log.warning("%s will be copied from the primary later: %s", name, error)


class _Forwarded:
    """A service some of whose methods are answered by the primary."""

    def __init__(
        self, service: Service, behaviour: Callable[[MethodDescriptor], Callable[..., Any]]
    ) -> None:
        self.descriptor: ServiceDescriptor = service.descriptor
        for method in service.descriptor.methods:
            passes = method.full_name in METHODS
            setattr(
                self, method.name, behaviour(method) if passes else getattr(service, method.name)
            )


class _Requests:
    """The requests of a client stream; keeps the error that ended them."""

    def __init__(self, requests: AsyncIterator[Message]) -> None:
        self._requests = requests
        self.error: LoramuxError | None = None

    async def __aiter__(self) -> AsyncIterator[Message]:
        try:
            async for request in self._requests:
                yield request
        except LoramuxError as error:
            self.error = error
            raise
