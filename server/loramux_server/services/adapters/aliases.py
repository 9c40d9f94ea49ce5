"""AliasService: moves and history of aliases."""

import asyncio

from loramux.v1 import aliases_pb2
from loramux_server.access.caller import caller
from loramux_server.field_errors import invalid, wrong
from loramux_server.services.adapters.descriptions import alias_of, split_of
from loramux_server.services.adapters.pages import page_size
from loramux_server.services.adapters.storage import storage_errors
from loramux_server.store.alias import Split
from loramux_server.store.names import not_registered
from loramux_server.store.reference import Reference, parse_name
from loramux_server.store.registry import Registry
from loramux_server.tasks import finished
from loramux_server.transport.rpc import Context

MAX_MOVED_BY = 128


class AliasService:
    """Implements `loramux.v1.AliasService`."""

    descriptor = aliases_pb2.DESCRIPTOR.services_by_name["AliasService"]

    def __init__(self, registry: Registry) -> None:
        self._registry = registry

    async def SetAlias(
        self, request: aliases_pb2.SetAliasRequest, context: Context
    ) -> aliases_pb2.SetAliasResponse:
        """Point an alias at other versions."""
        if not request.split.weights:
            raise wrong("split.weights", "is empty; expected a weight for at least one version")
        split = await self._set(request, request.split, context)
        return aliases_pb2.SetAliasResponse(alias=alias_of(request.alias, split))

    async def DeleteAlias(
        self, request: aliases_pb2.DeleteAliasRequest, context: Context
    ) -> aliases_pb2.DeleteAliasResponse:
        """Delete an alias."""
        await self._set(request, aliases_pb2.Split(), context)
        return aliases_pb2.DeleteAliasResponse()

    async def RollBackAlias(
        self, request: aliases_pb2.RollBackAliasRequest, context: Context
    ) -> aliases_pb2.RollBackAliasResponse:
        """Undo the last move of an alias."""
        by = _by(request.moved_by, context)
        with storage_errors():
            moving = asyncio.to_thread(
                self._registry.aliases.roll_back,
                parse_name(request.name, "name"),
                request.alias,
                by=by,
            )
            split = await finished(moving)
        return aliases_pb2.RollBackAliasResponse(alias=alias_of(request.alias, split))

    async def ListAliasMoves(
        self, request: aliases_pb2.ListAliasMovesRequest, context: Context
    ) -> aliases_pb2.ListAliasMovesResponse:
        """List a page of the history; the page token is the number of the last move before it."""
        reference = self._adapter(request.name)
        size = page_size(request.page_size)
        token = request.page_token
        if token and not (token.isascii() and token.isdecimal() and len(token) < 19):
            raise invalid("page_token", token, "a next_page_token")
        with storage_errors():
            moves = await asyncio.to_thread(
                self._registry.aliases.history,
                reference,
                request.alias,
                before=int(token) if token else None,
                limit=size + 1,
            )
        response = aliases_pb2.ListAliasMovesResponse(
            next_page_token=str(moves[size - 1].number) if len(moves) > size else ""
        )
        for move in moves[:size]:
            message = response.moves.add(
                before=split_of(move.before), after=split_of(move.after), moved_by=move.moved_by
            )
            message.moved_at.FromDatetime(move.moved_at)
        return response

    async def _set(
        self,
        request: aliases_pb2.SetAliasRequest | aliases_pb2.DeleteAliasRequest,
        split: aliases_pb2.Split,
        context: Context,
    ) -> Split:
        by = _by(request.moved_by, context)
        with storage_errors():
            moving = asyncio.to_thread(
                self._registry.aliases.set,
                parse_name(request.name, "name"),
                request.alias,
                dict(split.weights),
                by=by,
                expected=dict(request.expected.weights) if request.HasField("expected") else None,
            )
            return await finished(moving)

    def _adapter(self, name: str) -> Reference:
        reference = parse_name(name, "name")
        if not self._registry.versions(name):
            raise not_registered(reference, "name")
        return reference


def _by(moved_by: str, context: Context) -> str:
    """Return who moves an alias: the caller's key, its own statement, or its address."""
    if len(moved_by) > MAX_MOVED_BY or not moved_by.isprintable():
        raise invalid("moved_by", moved_by, f"at most {MAX_MOVED_BY} printable characters")
    if not (key_id := caller().key_id):
        return moved_by or context.peer().rpartition(":")[0]
    # The caller's statement must not hide the key.
    return f"{moved_by} (key {key_id})" if moved_by else f"key {key_id}"
