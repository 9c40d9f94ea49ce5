"""Methods of the blocking client for aliases."""

import grpc

from loramux import _adapter_wire as wire
from loramux import _wire
from loramux.types import AliasMove
from loramux.v1 import adapters_pb2, aliases_pb2
from loramux.v1.adapters_pb2_grpc import AdapterServiceStub
from loramux.v1.aliases_pb2_grpc import AliasServiceStub


class Aliases:
    """Aliases of adapters: tags that move from version to version."""

    def __init__(self, channel: grpc.Channel, timeout: float) -> None:
        self._adapters = AdapterServiceStub(channel)
        self._aliases = AliasServiceStub(channel)
        self._timeout = timeout

    def aliases(self, name: str) -> dict[str, dict[int, int]]:
        """Return the target of each alias of an adapter: weight by version."""
        with _wire.raising():
            response = self._adapters.GetAdapter(
                adapters_pb2.GetAdapterRequest(name=name), timeout=self._timeout
            )
            return {alias.alias: wire.weights(alias.split) for alias in response.aliases}

    def set_alias(
        self,
        name: str,
        alias: str,
        *,
        version: int | None = None,
        weights: wire.Weights | None = None,
        expected: int | wire.Weights | None = None,
        by: str = "",
    ) -> dict[int, int]:
        """Point `alias` to one version, or to several by weight, and return that.

        Requests that have resolved the alias keep their version.

        Args:
            name: The adapter, `[tenant/]name`.
            alias: The tag to move.
            version: The new target.
            weights: Or several versions, each with its share of the traffic.
            expected: Compare and set: raise an AbortedError unless the alias points to this
                version, or to these; if empty, unless it does not exist.
            by: Who moves it, for the history; by default the address of this client.
        """
        request = wire.set_alias_request(name, alias, version, weights, expected, by)
        with _wire.raising():
            response = self._aliases.SetAlias(request, timeout=self._timeout)
            return wire.weights(response.alias.split)

    def delete_alias(
        self, name: str, alias: str, *, expected: int | wire.Weights | None = None, by: str = ""
    ) -> None:
        """Delete an alias; its versions stay. See `set_alias`."""
        request = aliases_pb2.DeleteAliasRequest(
            name=name, alias=alias, expected=wire.expected_split(expected), moved_by=by
        )
        with _wire.raising():
            self._aliases.DeleteAlias(request, timeout=self._timeout)

    def roll_back(self, name: str, alias: str, *, by: str = "") -> dict[int, int]:
        """Undo the last move of `alias` and return its target."""
        request = aliases_pb2.RollBackAliasRequest(name=name, alias=alias, moved_by=by)
        with _wire.raising():
            response = self._aliases.RollBackAlias(request, timeout=self._timeout)
            return wire.weights(response.alias.split)

    def alias_moves(self, name: str, alias: str, *, limit: int = 100) -> list[AliasMove]:
        """Return the last moves of an alias, newest first."""
        found: list[AliasMove] = []
        token = ""
        with _wire.raising():
            while limit > len(found):
                response = self._aliases.ListAliasMoves(
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
