"""Methods of the asynchronous client for aliases: those of the blocking one, with `await`."""

import grpc

from loramux import _adapter_wire as wire
from loramux import _wire
from loramux.types import AliasMove
from loramux.v1 import adapters_pb2, aliases_pb2
from loramux.v1.adapters_pb2_grpc import AdapterServiceStub
from loramux.v1.aliases_pb2_grpc import AliasServiceStub


class AsyncAliases:
    """Aliases of adapters: tags that move from version to version."""

    def __init__(self, channel: grpc.aio.Channel, timeout: float) -> None:
        self._adapters = AdapterServiceStub(channel)
        self._aliases = AliasServiceStub(channel)
        self._timeout = timeout

    async def aliases(self, name: str) -> dict[str, dict[int, int]]:
        """Return the target of each alias of an adapter: weight by version."""
        with _wire.raising():
            response = await self._adapters.GetAdapter(
                adapters_pb2.GetAdapterRequest(name=name), timeout=self._timeout
            )
            return {alias.alias: wire.weights(alias.split) for alias in response.aliases}

    async def set_alias(
        self,
        name: str,
        alias: str,
        *,
        version: int | None = None,
        weights: wire.Weights | None = None,
        expected: int | wire.Weights | None = None,
        by: str = "",
    ) -> dict[int, int]:
        """Point `alias` to one version, or to several by weight; see `Aliases.set_alias`."""
        request = wire.set_alias_request(name, alias, version, weights, expected, by)
        with _wire.raising():
            response = await self._aliases.SetAlias(request, timeout=self._timeout)
            return wire.weights(response.alias.split)

    async def delete_alias(
        self, name: str, alias: str, *, expected: int | wire.Weights | None = None, by: str = ""
    ) -> None:
        """Delete an alias; its versions stay. See `set_alias`."""
        request = aliases_pb2.DeleteAliasRequest(
            name=name, alias=alias, expected=wire.expected_split(expected), moved_by=by
        )
        with _wire.raising():
            await self._aliases.DeleteAlias(request, timeout=self._timeout)

    async def roll_back(self, name: str, alias: str, *, by: str = "") -> dict[int, int]:
        """Undo the last move of `alias` and return its target."""
        request = aliases_pb2.RollBackAliasRequest(name=name, alias=alias, moved_by=by)
        with _wire.raising():
            response = await self._aliases.RollBackAlias(request, timeout=self._timeout)
            return wire.weights(response.alias.split)

    async def alias_moves(self, name: str, alias: str, *, limit: int = 100) -> list[AliasMove]:
        """Return the last moves of an alias, newest first."""
        found: list[AliasMove] = []
        token = ""
        with _wire.raising():
            while limit > len(found):
                response = await self._aliases.ListAliasMoves(
                    aliases_pb2.ListAliasMovesRequest(
                        name=name,
                        alias=alias,
                        page_size=min(limit - len(found), wire.PAGE_SIZE),
                        page_token=token,
                    ),
                    timeout=self._timeout,
                )
                found += [wire.move(move) for move in response.moves]
                token = response.next_page_token
                if not token:
                    break
        return found
