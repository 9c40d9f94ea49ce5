"""Moving aliases: compare-and-swap, rollback, and the history of moves."""

import datetime
import threading
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from loramux.errors import (
    AbortedError,
    FailedPreconditionError,
    NotFoundError,
)
from loramux_server.field_errors import at_fault
from loramux_server.store.alias import Move, Split
from loramux_server.store.names import Names
from loramux_server.store.record import AdapterRecord
from loramux_server.store.reference import Reference, check_alias
from loramux_server.store.write_lock import WriteLock

if TYPE_CHECKING:
    from loramux_server.store.catalog import Catalog

PRIMARY = "primary"
"""`moved_by` of moves that a replica mirrors."""


class Aliases:
    """The aliases of all adapters. Thread-safe; methods that change something may block."""

    def __init__(
        self, catalog: "Catalog", names: Names, write_lock: WriteLock, lock: threading.Lock
    ) -> None:
        """Work on what the registry owns.

        Args:
            catalog: Where moves are written first.
            names: The same in memory.
            write_lock: Held while a move is written.
            lock: Held to read or change `names`.
        """
        self._catalog = catalog
        self._names = names
        self._write_lock = write_lock
        self._lock = lock
        self.on_move: Callable[[Move], object] = lambda move: None
        """Called with each move once it is durable, from any thread."""

    def of(self, adapter: tuple[str, str]) -> dict[str, Split]:
        """Return the split of each alias of an adapter."""
        with self._lock:
            return self._names.aliases(adapter)

    def of_version(self, record: AdapterRecord) -> list[str]:
        """Return the aliases that include a version, alone or among others."""
        found = self.of(record.adapter).items()
        return sorted(alias for alias, split in found if record.version in split.versions)

    def set(
        self,
        reference: Reference,
        alias: str,
        weights: Mapping[int, int],
        *,
        by: str,
        expected: Mapping[int, int] | None = None,
    ) -> Split:
        """Point `alias` of an adapter at versions by weight, and return the new split.

        Args:
            reference: The adapter.
            alias: The alias to move.
            weights: Weight by version; empty deletes the alias.
            by: Who moves it.
            expected: Its current weights, empty if it must not exist; None skips this check.

        Raises:
            InvalidArgumentError: The alias or a weight is not allowed.
            NotFoundError: There is no such adapter or version, or no such alias to delete.
            AbortedError: The alias is not as expected.
        """
        check_alias(alias, "alias")
        after = _split(weights, "weights")
        wanted = None if expected is None else _split(expected, "expected")
        with self._write_lock:
            before = self._before(reference, alias)
            if wanted is not None and before != wanted:
                raise AbortedError(
                    f"alias {alias!r} of {str(reference)!r} points to {before}, not to {wanted}; "
                    "another caller moved it",
                    reason="ALIAS_MOVED",
                    field="expected",
                )
            if not (after.weights or before.weights):
                raise _no_alias(reference, alias)
            for version in after.versions:
                named = Reference(reference.tenant, reference.name, str(version))
                with self._lock:
                    self._names.find(named, field="weights")
            return self._move(reference, alias, before, after, by)

    def roll_back(self, reference: Reference, alias: str, *, by: str) -> Split:
        """Undo the last move of `alias`, as another move, and return the new split.

        Raises:
            NotFoundError: There is no such adapter or alias.
            FailedPreconditionError: It did not exist before, or included a version that was
                deleted.
        """
        check_alias(alias, "alias")
        adapter = (reference.tenant, reference.name)
        with self._write_lock:
            now = self._before(reference, alias)
            last = self._catalog.moves(adapter, alias, before=None, limit=1)
            if not now.weights or not last:
                raise _no_alias(reference, alias)
            after = last[0].before
            with self._lock:
                gone = [v for v in after.versions if self._names.version(adapter, v) is None]
            if gone or not after.weights:
                what = f"version {gone[0]}, which was deleted" if gone else "nothing"
                raise FailedPreconditionError(
                    f"alias {alias!r} of {str(reference)!r} pointed to {what} before its last move",
                    reason="ALIAS_NOT_MOVABLE",
                    field="alias",
                )
            return self._move(reference, alias, now, after, by)

    def mirror(self, reference: Reference, theirs: Mapping[str, Split]) -> None:
        """Make the aliases of an adapter equal to those of a primary.

        An alias that includes a version that is not here yet stays as it is.
        """
        adapter = (reference.tenant, reference.name)
        with self._write_lock:
            ours = self.of(adapter)
            for alias in sorted(ours.keys() | theirs.keys()):
                after = theirs.get(alias, Split())
                with self._lock:
                    lacks = [v for v in after.versions if self._names.version(adapter, v) is None]
                if not lacks:
                    self._move(reference, alias, ours.get(alias, Split()), after, PRIMARY)

    def history(
        self, reference: Reference, alias: str, *, before: int | None, limit: int
    ) -> list[Move]:
        """Return moves of an alias, newest first: at most `limit`, with numbers below `before`."""
        check_alias(alias, "alias")
        return self._catalog.moves(
            (reference.tenant, reference.name), alias, before=before, limit=limit
        )

    def _before(self, reference: Reference, alias: str) -> Split:
        with self._lock:
            adapter = self._names.find(reference, field="name").adapter
            return self._names.aliases(adapter).get(alias, Split())

    def _move(
        self, reference: Reference, alias: str, before: Split, after: Split, by: str
    ) -> Split:
        if before == after:
            return after
        move = Move(
            tenant=reference.tenant,
            name=reference.name,
            alias=alias,
            before=before,
            after=after,
            moved_at=datetime.datetime.now(datetime.UTC),
            moved_by=by,
        )
        self._catalog.move(move)
        with self._lock:
            self._names.set_alias((reference.tenant, reference.name), alias, after)
        self.on_move(move)
        return after


def _split(weights: Mapping[int, int], field: str) -> Split:
    try:
        return Split.of(weights)
    except ValueError as error:
        raise at_fault(field, f"{field}: {error}") from None


def _no_alias(reference: Reference, alias: str) -> NotFoundError:
    return NotFoundError(
        f"adapter {str(reference)!r} has no alias {alias!r}",
        reason="ADAPTER_NOT_FOUND",
        field="alias",
    )
