"""The API of the page: client calls with the caller's key."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

import grpc
import msgspec
from starlette.requests import Request
from starlette.responses import Response

from loramux.aio import AsyncClient
from loramux.gateway.adapters.bodies import whole_number
from loramux.gateway.answering import CancelOnDisconnect
from loramux.gateway.backend import Backend
from loramux.gateway.caller import caller_of
from loramux.gateway.console.live import Live
from loramux.gateway.parsing import parse
from loramux.gateway.reading import read
from loramux.gateway.refusal import invalid, json_response
from loramux.gateway.uploading import Start, Uploading
from loramux.types import Adapter

_BY = "console"
"""Recorded as the origin of alias moves, in addition to the key."""
_MAX_MOVES = 50

B = TypeVar("B", bound=msgspec.Struct)


class Named(msgspec.Struct):
    """A request about an adapter, or a version of one."""

    name: str


class AliasNamed(msgspec.Struct, kw_only=True):
    """A request about an alias."""

    name: str
    alias: str
    expected: dict[int, int] | None = None
    """Current weight by version, for compare-and-swap; empty if there must be no alias."""


class AliasSet(AliasNamed, kw_only=True):
    """The new target of an alias: weight by version."""

    weights: dict[int, int]


class Finish(msgspec.Struct):
    """A request to finish an upload."""

    upload_id: str


class Api:
    """The handlers of the routes."""

    def __init__(self, backend: Callable[[], Backend], ending: asyncio.Event) -> None:
        """Initialize; `ending` is set when the gateway shuts down."""
        self._backend = backend
        self._ending = ending

    async def server(self, request: Request) -> Response:
        """`GET server`: the server's info, and the number of servers."""
        channels = await self._backend().servers(caller_of(request.scope))
        client = await self._client(request)
        return _json(request, {"info": await client.info(), "servers": len(channels)})

    async def live(self, request: Request) -> CancelOnDisconnect:
        """`GET live`: a stream of changes of adapters and load."""
        client = await self._client(request)
        await client.info()  # so that a refusal is an HTTP error
        return CancelOnDisconnect(Live(client, self._ending, caller_of(request.scope)).events)

    async def aliases(self, request: Request) -> Response:
        """`GET aliases?name=`: the weights by version of each alias."""
        client = await self._client(request)
        return _json(request, await client.adapters.aliases(_given(request, "name")))

    async def moves(self, request: Request) -> Response:
        """`GET aliases/moves?name=&alias=`: the last moves of an alias, newest first."""
        client = await self._client(request)
        name, alias = _given(request, "name"), _given(request, "alias")
        return _json(request, await client.adapters.alias_moves(name, alias, limit=_MAX_MOVES))

    async def set_alias(self, request: Request) -> Response:
        """`POST aliases/set`: move an alias to other versions."""
        body, client = await self._parsed(request, AliasSet)
        weights = await client.adapters.set_alias(
            body.name, body.alias, weights=body.weights, expected=body.expected, by=_BY
        )
        return _json(request, weights)

    async def delete_alias(self, request: Request) -> Response:
        """`POST aliases/delete`: delete an alias."""
        body, client = await self._parsed(request, AliasNamed)
        await client.adapters.delete_alias(body.name, body.alias, expected=body.expected, by=_BY)
        return _json(request, {})

    async def roll_back(self, request: Request) -> Response:
        """`POST aliases/roll-back`: undo the last move of an alias."""
        body, client = await self._parsed(request, AliasNamed)
        return _json(request, await client.adapters.roll_back(body.name, body.alias, by=_BY))

    async def pin(self, request: Request) -> Response:
        """`POST adapters/pin`: keep a version on the device."""
        return await self._changed(request, lambda client, name: client.adapters.pin(name))

    async def unpin(self, request: Request) -> Response:
        """`POST adapters/unpin`: unpin a version."""
        return await self._changed(request, lambda client, name: client.adapters.unpin(name))

    async def delete(self, request: Request) -> Response:
        """`POST adapters/delete`: delete an adapter, or one version."""
        body, client = await self._parsed(request, Named)
        await client.adapters.delete(body.name)
        return _json(request, {})

    async def start_upload(self, request: Request) -> Response:
        """`POST uploads/start`: start or resume an upload; returns the bytes already received."""
        body = parse(await read(request), Start)
        return _json(request, await (await self._uploading(request)).start(body))

    async def send_chunks(self, request: Request) -> Response:
        """`PUT uploads/chunks?upload_id=&offset=`: send bytes."""
        uploading = await self._uploading(request)
        upload_id, offset = _given(request, "upload_id"), whole_number(request, "offset") or 0
        return _json(request, await uploading.send(upload_id, offset, request.stream()))

    async def finish_upload(self, request: Request) -> Response:
        """`POST uploads/finish`: have the package checked and registered."""
        body = parse(await read(request), Finish)
        return _json(request, await (await self._uploading(request)).finish(body.upload_id))

    async def _changed(
        self, request: Request, change: Callable[[AsyncClient, str], Awaitable[Adapter]]
    ) -> Response:
        body, client = await self._parsed(request, Named)
        return _json(request, await change(client, body.name))

    async def _parsed(self, request: Request, kind: type[B]) -> tuple[B, AsyncClient]:
        return parse(await read(request), kind), await self._client(request)

    async def _client(self, request: Request) -> AsyncClient:
        return AsyncClient._over(await self._channel(request), self._backend().timeout)

    async def _uploading(self, request: Request) -> Uploading:
        return Uploading(await self._channel(request), self._backend().timeout)

    async def _channel(self, request: Request) -> grpc.aio.Channel:
        """Return a channel to the server that the page shows, by its number in the query."""
        channels = await self._backend().servers(caller_of(request.scope))
        number = whole_number(request, "server") or 0
        if number >= len(channels):
            raise invalid("server", f"server is {number}; expected 0 to {len(channels) - 1}")
        return channels[number]


def _json(request: Request, body: object) -> Response:
    return json_response(body, caller_of(request.scope).returned)


def _given(request: Request, name: str) -> str:
    if name not in request.query_params:
        raise invalid(name, f"{name} is missing from the query")
    return request.query_params[name]
