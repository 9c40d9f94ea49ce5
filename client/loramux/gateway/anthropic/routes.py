"""The routes of Anthropic's API."""

from collections.abc import Awaitable, Callable
from dataclasses import replace
from functools import partial
from typing import TypeVar

from starlette.requests import Request
from starlette.routing import Route

from loramux.gateway.answering import CancelOnDisconnect
from loramux.gateway.anthropic.answer import Answer
from loramux.gateway.anthropic.body import UNSUPPORTED, CountBody, MessagesBody
from loramux.gateway.anthropic.counting import Counting
from loramux.gateway.anthropic.fitting import Fitting
from loramux.gateway.anthropic.grpc_requests import OMITTED, messages_request
from loramux.gateway.anthropic.merged_messages import MergedMessages
from loramux.gateway.anthropic.names import MessageNames
from loramux.gateway.anthropic.refusal import request_header
from loramux.gateway.backend import Backend
from loramux.gateway.caller import Caller, caller_of
from loramux.gateway.models import reported
from loramux.gateway.parsing import parse
from loramux.gateway.reading import read
from loramux.v1 import generation_pb2

PATH = "/v1/messages"
B = TypeVar("B", bound=CountBody)


class Messages:
    """The handlers of `/v1/messages` and the routes below it."""

    def __init__(
        self,
        backend: Callable[[], Backend],
        most_bytes: Callable[[Caller], Awaitable[int]],
    ) -> None:
        """Initialize.

        Args:
            backend: Returns the connection to the servers.
            most_bytes: Returns the size limit of a caller's body with images.
        """
        self._backend = backend
        self._most_bytes = most_bytes

    @property
    def routes(self) -> list[Route]:
        """The routes."""
        return [
            Route(PATH, self.create, methods=["POST"]),
            Route(f"{PATH}/count_tokens", self.count_tokens, methods=["POST"]),
        ]

    async def create(self, request: Request) -> CancelOnDisconnect:
        """`POST /v1/messages`."""
        caller, body, names, grpc_request = await self._parsed(request, MessagesBody)
        answer = Answer(
            caller.request_id,
            body.model,
            stop_sequences=body.stop_sequences,
            shows_thoughts=body.thinking is None or body.thinking.display != OMITTED,
            names=names,
        )
        fitting = Fitting(self._backend(), caller, grpc_request, answer, body.timeout)
        return CancelOnDisconnect(fitting.events if body.stream else fitting.whole)

    async def count_tokens(self, request: Request) -> CancelOnDisconnect:
        """`POST /v1/messages/count_tokens`."""
        caller, body, _, grpc_request = await self._parsed(request, CountBody)
        return CancelOnDisconnect(
            Counting(self._backend(), caller, grpc_request, body.timeout).whole
        )

    async def _parsed(
        self, request: Request, kind: type[B]
    ) -> tuple[Caller, B, MessageNames, generation_pb2.GenerateRequest]:
        """Return the caller, the body, the field names for errors, and the server's request."""
        caller = caller_of(request.scope)
        request.state.names = MessageNames()
        body = parse(await read(request, partial(self._most_bytes, caller)), kind, UNSUPPORTED)
        messages = MergedMessages(body)
        request.state.names = names = MessageNames(sources=messages.sources)
        server = await self._backend().info(caller)
        body.model = reported(body.model, server)
        grpc_request = messages_request(body, messages, server.base_model)
        named = replace(caller, returned=caller.returned | request_header(caller))
        return named, body, names, grpc_request
