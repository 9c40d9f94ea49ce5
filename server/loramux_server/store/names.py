"""The names of a store in memory: what each reference resolves to. Not thread-safe."""

import datetime
from bisect import bisect_left, insort
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from loramux.errors import NotFoundError
from loramux_server.store.alias import Split
from loramux_server.store.record import AdapterRecord
from loramux_server.store.reference import LATEST, Reference, full_name

Adapter = tuple[str, str]
"""Tenant and name."""
Key = tuple[str, str, int]
"""Tenant, name and version number."""


@dataclass(slots=True)
class _Entry:
    """One adapter: its versions in order, and its aliases."""

    versions: dict[int, AdapterRecord] = field(default_factory=dict)
    aliases: dict[str, Split] = field(default_factory=dict)

    @property
    def newest(self) -> AdapterRecord:
        return self.versions[next(reversed(self.versions))]


class Names:
    """Reference -> version."""

    def __init__(self) -> None:
        self._entries: dict[Adapter, _Entry] = {}
        self._order: list[Adapter] = []
        """The keys of the entries, sorted."""
        self._last: dict[Adapter, int] = {}
        self._by_digest: defaultdict[str, dict[Key, AdapterRecord]] = defaultdict(dict)
        self._ends: list[tuple[datetime.datetime, Key]] = []
        """Expiry times and their versions, soonest first."""

    def read(
        self,
        versions: Iterable[AdapterRecord],
        last_versions: Mapping[Adapter, int],
        aliases: Iterable[tuple[Adapter, str, Split]],
    ) -> None:
        """Replace the content."""
        self._entries.clear()
        self._by_digest.clear()
        self._ends.clear()
        self._last = dict(last_versions)
        for record in versions:
            self._put(record)
        self._order = sorted(self._entries)
        for adapter, alias, split in aliases:
            self.set_alias(adapter, alias, split)

    def __len__(self) -> int:
        return len(self._entries)

    def find(self, reference: Reference, *, field: str, key: str | None = None) -> AdapterRecord:
        """Return the version that `reference`, of the request field `field`, resolves to now.

        Args:
            reference: The reference.
            field: For the error.
            key: Selects a version where an alias has several; None selects the heaviest.

        Raises:
            NotFoundError: It resolves to nothing; the message says what is missing.
        """
        entry = self._entries.get((reference.tenant, reference.name))
        if entry is None:
            raise not_registered(reference, field)
        if reference.digest and not reference.tag:
            for record in reversed(entry.versions.values()):
                if record.digest == reference.digest:
                    return record
            raise _not_found(f"no version of adapter {str(reference)!r} has this digest", field)
        record = self._tagged(entry, reference, field, key)
        if reference.digest and record.digest != reference.digest:
            raise _not_found(
                f"adapter {str(reference)!r} is not registered: {record} has {record.digest}",
                field,
            )
        return record

    def versions(self, adapter: Adapter) -> list[AdapterRecord]:
        """Return all versions of an adapter, oldest first; none if it is not registered."""
        entry = self._entries.get(adapter)
        return list(entry.versions.values()) if entry else []

    def version(self, adapter: Adapter, version: int) -> AdapterRecord | None:
        """Return one version of an adapter; None if it is not registered."""
        entry = self._entries.get(adapter)
        return entry.versions.get(version) if entry else None

    def newest(self, adapter: Adapter) -> AdapterRecord | None:
        """Return the newest version of an adapter; None if it is not registered."""
        entry = self._entries.get(adapter)
        return entry.newest if entry else None

    def next_version(self, adapter: Adapter) -> int:
        """Return the number of the next version, which was never used before."""
        return self._last.get(adapter, 0) + 1

    def aliases(self, adapter: Adapter) -> dict[str, Split]:
        """Return the split of each alias of an adapter."""
        entry = self._entries.get(adapter)
        return dict(entry.aliases) if entry else {}

    def with_digest(self, digest: str) -> list[AdapterRecord]:
        """Return all versions with this content."""
        return list(self._by_digest[digest].values()) if digest in self._by_digest else []

    def has_digest(self, digest: str) -> bool:
        """Return whether any version has this content."""
        return digest in self._by_digest

    def digests(self) -> set[str]:
        """Return the digests of all versions."""
        return set(self._by_digest)

    def expired(self, now: datetime.datetime) -> Iterator[AdapterRecord]:
        """Yield the versions that have expired at `now`, in the order of their expiry times."""
        for moment, (tenant, name, version) in self._ends:
            if moment > now:
                return
            yield self._entries[tenant, name].versions[version]

    def by_key(self) -> dict[Key, AdapterRecord]:
        """Return all versions by key."""
        entries = self._entries.values()
        return {record.key: record for entry in entries for record in entry.versions.values()}

    def after(self, adapter: Adapter | None) -> list[Adapter]:
        """Return the adapters from `adapter` on, itself included, sorted by tenant and name."""
        begin = bisect_left(self._order, adapter) if adapter else 0
        return self._order[begin:]

    def add(self, record: AdapterRecord) -> None:
        """Add a version, or replace its record by a changed one."""
        if record.adapter not in self._entries:
            insort(self._order, record.adapter)
        self._put(record)

    def remove(self, record: AdapterRecord) -> None:
        """Remove a version; with the last one, also its adapter and the aliases."""
        entry = self._entries[record.adapter]
        self._set_end(entry.versions.pop(record.version), None)
        del self._by_digest[record.digest][record.key]
        if not self._by_digest[record.digest]:
            del self._by_digest[record.digest]
        if not entry.versions:
            del self._entries[record.adapter]
            del self._order[bisect_left(self._order, record.adapter)]

    def set_alias(self, adapter: Adapter, alias: str, split: Split) -> None:
        """Set what an alias resolves to; an empty split deletes it."""
        entry = self._entries[adapter]
        if split.weights:
            entry.aliases[alias] = split
        else:
            entry.aliases.pop(alias, None)

    def _put(self, record: AdapterRecord) -> None:
        entry = self._entries.setdefault(record.adapter, _Entry())
        self._set_end(entry.versions.get(record.version), record)
        is_late = record.version < max(entry.versions, default=0)
        entry.versions[record.version] = record
        if is_late:  # versions mirrored from a primary may arrive in any order
            entry.versions = dict(sorted(entry.versions.items()))
        self._by_digest[record.digest][record.key] = record
        self._last[record.adapter] = max(self._last.get(record.adapter, 0), record.version)

    def _set_end(self, before: AdapterRecord | None, after: AdapterRecord | None) -> None:
        """Update the expiry index after a version was added, changed or removed."""
        if before and before.expires_at:
            del self._ends[bisect_left(self._ends, (before.expires_at, before.key))]
        if after and after.expires_at:
            insort(self._ends, (after.expires_at, after.key))

    def _tagged(
        self, entry: _Entry, reference: Reference, field: str, key: str | None
    ) -> AdapterRecord:
        """Return the version of `entry` that the tag resolves to."""
        if reference.tag in ("", LATEST):
            return entry.newest
        version = reference.version
        if version is None:
            split = entry.aliases.get(reference.tag)
            if split is None:
                raise _not_found(
                    f"adapter {full_name(reference.tenant, reference.name)!r} has no alias "
                    f"{reference.tag!r}; it has {', '.join(sorted(entry.aliases)) or 'none'}",
                    field,
                )
            # Salted with the alias, so that the same keys are not first in every rollout.
            salted = f"{reference.tenant}/{reference.name}:{reference.tag}\0{key}"
            version = split.heaviest if key is None else split.choose(salted)
        record = entry.versions.get(version)
        if record is None:
            raise _not_found(
                f"adapter {full_name(reference.tenant, reference.name)!r} has no version "
                f"{version}; the newest is {entry.newest.version}",
                field,
            )
        return record


def not_registered(reference: Reference, field: str) -> NotFoundError:
    """Return the error for a name that is not registered, or that the caller must not see."""
    return _not_found(f"adapter {str(reference)!r} is not registered", field)


def _not_found(message: str, field: str) -> NotFoundError:
    return NotFoundError(message, reason="ADAPTER_NOT_FOUND", field=field)
