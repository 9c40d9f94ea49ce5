"""What the blocking client does with aliases."""

import grpc

from loramux import _adapter_wire as wire
from loramux import _wire
from loramux.types import AliasMove
from loramux.v1 import adapters_pb2, aliases_pb2
from loramux.v1.adapters_pb2_grpc import AdapterServiceStub
from loramux.v1.aliases_pb2_grpc import AliasServiceStub


class Aliases:
    """The tags of adapters that move from version to version."""

    def __init__(self, channel: grpc.Channel, timeout: float) -> None:
        self._adapters = AdapterServiceStub(channel)
        self._aliases = AliasServiceStub(channel)
        self._timeout = timeout

    def aliases(self, name: str) -> dict[str, dict[int, int]]:
        """Return what each alias of an adapter stands for: weight by version."""
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
        """Let `alias` stand for one version, or for several by weight, and return that.

        Requests that resolved the alias before keep what they have.

        Args:
            name: The adapter, `[tenant/]name`.
            alias: The tag that moves.
            version: What it is to stand for.
            weights: Or these versions, each with its share of the routing keys.
            expected: Raise an AbortedError unless the alias stands for this version, or for these;
                for nothing yet, if empty.
            by: Who moves it, for the history; by default the address of this client.
        """
        request = wire.set_alias_request(name, alias, version, weights, expected, by)
        with _wire.raising():
            response = self._aliases.SetAlias(request, timeout=self._timeout)
            return wire.weights(response.alias.split)

    def delete_alias(
        self, name: str, alias: str, *, expected: int | wire.Weights | None = None, by: str = ""
    ) -> None:
        """Take an alias away; the versions stay. See `set_alias`."""
        request = aliases_pb2.DeleteAliasRequest(
            name=name, alias=alias, expected=wire.expected_split(expected), moved_by=by
        )
        with _wire.raising():
            self._aliases.DeleteAlias(request, timeout=self._timeout)

    def roll_back(self, name: str, alias: str, *, by: str = "") -> dict[int, int]:
        """Let `alias` stand for what it stood for before its last move, and return that."""
        request = aliases_pb2.RollBackAliasRequest(name=name, alias=alias, moved_by=by)
        with _wire.raising():
            response = self._aliases.RollBackAlias(request, timeout=self._timeout)
            return wire.weights(response.alias.split)

    def alias_moves(self, name: str, alias: str, *, limit: int = 100) -> list[AliasMove]:
        """Return the last moves of an alias, the newest first."""
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
