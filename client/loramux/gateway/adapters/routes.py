"""The routes of `/v1/adapters`, which make client calls with the caller's key."""

import datetime
from collections.abc import Awaitable, Callable
from functools import wraps
from typing import TypeVar

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from loramux.aio import AsyncClient
from loramux.gateway.adapters.bodies import (
    NOTHING_ELSE,
    AliasBody,
    ImportBody,
    NoBody,
    TtlBody,
    check_query,
    flag,
    number,
    reference_of,
    whole_number,
)
from loramux.gateway.adapters.objects import (
    Object,
    adapter_object,
    alias_object,
    list_object,
    move_object,
    refusal,
    weights_object,
)
from loramux.gateway.adapters.package import start_of, upload
from loramux.gateway.backend import Backend
from loramux.gateway.caller import caller_of
from loramux.gateway.parsing import parse
from loramux.gateway.reading import read
from loramux.gateway.refusal import invalid, json_response
from loramux.gateway.uploading import ttl_of

_BY = "http"
"""Recorded as the origin of alias moves, in addition to the key."""
_MAX_MOVES = 100
_ONE = "/v1/adapters/{reference}"
_ALIAS = "/v1/adapters/{name}/aliases/{alias}"

B = TypeVar("B", bound=msgspec.Struct)
Answer = Callable[[Request], Awaitable[Response]]


def adapter_routes(backend: Callable[[], Backend]) -> list[Route]:
    """Return the routes; `backend` is called for each request."""
    adapters = Adapters(backend)
    return [
        Route(path, _refusing(answer), methods=[method])
        for path, method, answer in (
            ("/v1/adapters", "GET", adapters.list),
            (_ONE, "GET", adapters.get),
            ("/v1/adapters/{name}", "PUT", adapters.upload),
            (_ONE, "DELETE", adapters.delete),
            ("/v1/adapters/{name}/import", "POST", adapters.import_from),
            (f"{_ONE}/pin", "PUT", adapters.pin),
            (f"{_ONE}/pin", "DELETE", adapters.unpin),
            (f"{_ONE}/ttl", "PUT", adapters.set_ttl),
            (_ALIAS, "PUT", adapters.set_alias),
            (_ALIAS, "DELETE", adapters.delete_alias),
            (f"{_ALIAS}/rollback", "POST", adapters.roll_back),
            (f"{_ALIAS}/moves", "GET", adapters.moves),
        )
    ]


def _refusing(answer: Answer) -> Answer:
    """Return `answer` with its errors in the form of these routes."""

    @wraps(answer)
    async def answering(request: Request) -> Response:
        request.state.refuse = refusal
        return await answer(request)

    return answering


class Adapters:
    """The handlers of the routes."""

    def __init__(self, backend: Callable[[], Backend]) -> None:
        self._backend = backend

    async def list(self, request: Request) -> Response:
        """`GET /v1/adapters`: the newest version, or all, of each adapter visible to the caller."""
        check_query(request, "tenant", "prefix", "all_versions")
        found = await self._client(request).adapters.list(
            all_versions=flag(request, "all_versions"),
            tenant=request.query_params.get("tenant", ""),
            name_prefix=request.query_params.get("prefix", ""),
        )
        return _json(request, list_object([adapter_object(each) for each in found]))

    async def get(self, request: Request) -> Response:
        """`GET /v1/adapters/{reference}`: a version, and lists of all versions and aliases."""
        check_query(request, "tenant")
        adapters = self._client(request).adapters
        adapter = await adapters.get(reference_of(request))
        every = await adapters.list(
            all_versions=True, tenant=adapter.tenant, name_prefix=adapter.name
        )
        full_name = f"{adapter.tenant}/{adapter.name}"
        aliases = await adapters.aliases(full_name)
        return _json(
            request,
            adapter_object(adapter)
            | {
                "versions": [each.version for each in every if each.name == adapter.name],
                "all_aliases": {
                    alias: weights_object(weights) for alias, weights in aliases.items()
                },
            },
        )

    async def upload(self, request: Request) -> Response:
        """`PUT /v1/adapters/{name}`: register the package in the body as the next version."""
        check_query(request, "tenant", "must_not_exist", "ttl_seconds")
        start = start_of(
            request,
            reference_of(request, "name"),
            must_not_exist=flag(request, "must_not_exist"),
            ttl=number(request, "ttl_seconds"),
        )
        backend = self._backend()
        channel = backend.channel(caller_of(request.scope))
        adapter, already_existed = await upload(request, channel, backend.timeout, start)
        return _json(request, adapter_object(adapter), 200 if already_existed else 201)

    async def import_from(self, request: Request) -> Response:
        """`POST /v1/adapters/{name}/import`: have the server fetch an adapter."""
        body = await self._parsed(request, ImportBody)
        adapter = await self._client(request).adapters.import_from(
            reference_of(request, "name"),
            body.uri,
            must_not_exist=body.must_not_exist,
            ttl=_ttl("ttl_seconds", body.ttl_seconds),
        )
        return _json(request, adapter_object(adapter))

    async def delete(self, request: Request) -> Response:
        """`DELETE /v1/adapters/{reference}`: delete an adapter, or one version."""
        check_query(request, "tenant")
        reference = reference_of(request)
        await self._client(request).adapters.delete(reference)
        deleted: Object = {"object": "adapter.deleted", "reference": reference, "deleted": True}
        return _json(request, deleted)

    async def pin(self, request: Request) -> Response:
        """`PUT /v1/adapters/{reference}/pin`: keep a version on the device."""
        check_query(request, "tenant")
        adapter = await self._client(request).adapters.pin(reference_of(request))
        return _json(request, adapter_object(adapter))

    async def unpin(self, request: Request) -> Response:
        """`DELETE /v1/adapters/{reference}/pin`: unpin a version."""
        check_query(request, "tenant")
        adapter = await self._client(request).adapters.unpin(reference_of(request))
        return _json(request, adapter_object(adapter))

    async def set_ttl(self, request: Request) -> Response:
        """`PUT /v1/adapters/{reference}/ttl`: set a version's time to live, from now on."""
        body = await self._parsed(request, TtlBody)
        adapter = await self._client(request).adapters.set_ttl(
            reference_of(request), _ttl("seconds", body.seconds)
        )
        return _json(request, adapter_object(adapter))

    async def set_alias(self, request: Request) -> Response:
        """`PUT /v1/adapters/{name}/aliases/{alias}`: move an alias to other versions."""
        body = await self._parsed(request, AliasBody)
        if (body.version is None) == (body.weights is None):
            raise invalid("version", "expected exactly one of version and weights")
        name, alias = _alias_of(request)
        weights = await self._client(request).adapters.set_alias(
            name,
            alias,
            version=body.version,
            weights=body.weights,
            expected=body.expected,
            by=_BY,
        )
        return _json(request, alias_object(name, alias, weights))

    async def delete_alias(self, request: Request) -> Response:
        """`DELETE /v1/adapters/{name}/aliases/{alias}`: delete an alias."""
        check_query(request, "tenant", "expected")
        expected = whole_number(request, "expected")
        name, alias = _alias_of(request)
        await self._client(request).adapters.delete_alias(name, alias, expected=expected, by=_BY)
        return _json(request, alias_object(name, alias, {}) | {"deleted": True})

    async def roll_back(self, request: Request) -> Response:
        """`POST /v1/adapters/{name}/aliases/{alias}/rollback`: undo its last move."""
        await self._parsed(request, NoBody)
        name, alias = _alias_of(request)
        weights = await self._client(request).adapters.roll_back(name, alias, by=_BY)
        return _json(request, alias_object(name, alias, weights))

    async def moves(self, request: Request) -> Response:
        """`GET /v1/adapters/{name}/aliases/{alias}/moves`: its last moves, newest first."""
        check_query(request, "tenant")
        name, alias = _alias_of(request)
        moves = await self._client(request).adapters.alias_moves(name, alias, limit=_MAX_MOVES)
        return _json(request, list_object([move_object(each) for each in moves]))

    async def _parsed(self, request: Request, kind: type[B]) -> B:
        check_query(request, "tenant")
        return parse(await read(request), kind, NOTHING_ELSE)

    def _client(self, request: Request) -> AsyncClient:
        backend = self._backend()
        return AsyncClient._over(backend.channel(caller_of(request.scope)), backend.timeout)


def _alias_of(request: Request) -> tuple[str, str]:
    return reference_of(request, "name"), request.path_params["alias"]


def _ttl(field: str, seconds: float | None) -> datetime.timedelta | None:
    return None if seconds is None else ttl_of(field, seconds)


def _json(request: Request, body: Object, status: int = 200) -> Response:
    return json_response(body, caller_of(request.scope).returned, status)
