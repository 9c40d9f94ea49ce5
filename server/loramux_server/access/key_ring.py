"""The keys of the catalog and of the access file, in memory.

Refreshed several times a second, because `loramux keys` changes them from another process.
"""

import datetime
import hmac
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from loramux_server.access.access_file import AccessFile
from loramux_server.access.caller import Caller, Role
from loramux_server.access.key import key_digest, parse_key
from loramux_server.access.server_secret import read_secret
from loramux_server.store.key_records import KeyRecord, KeyRecords
from loramux_server.store.times import now_in_utc

_NOBODY = "0" * 64
"""Compared with in place of the digest of an unknown key, so that timing does not differ."""


@dataclass(frozen=True, slots=True)
class _Known:
    """A snapshot of the catalog."""

    revision: str
    records: Mapping[str, KeyRecord] = field(default_factory=dict)
    secret: bytes = b""


class KeyRing:
    """Key text -> caller. Used on the event loop; `refresh` may run concurrently in a thread."""

    def __init__(
        self,
        records: KeyRecords,
        folder: Path,
        file: AccessFile | None = None,
        now: Callable[[], datetime.datetime] = now_in_utc,
    ) -> None:
        """Read the keys of the store in `folder`.

        Args:
            records: The keys of the catalog.
            folder: Contains the secret of their digests.
            file: Lists further keys. A key in both has the tenant and role of the file, and is
                invalid once it is revoked or expired in either.
            now: The wall clock.

        Raises:
            ServerSecretError: There are keys, and they cannot be checked.
        """
        self._records = records
        self._folder = folder
        self._file = file or AccessFile(None)
        self._now = now
        self._known = self._read()

    @property
    def is_empty(self) -> bool:
        """Whether the catalog has no keys, not even revoked ones, and there is no access file."""
        return not (self._known.records or self._file.is_given)

    def has_valid_key(self) -> bool:
        """Return whether there is a valid key."""
        now = self._now()
        records = (*self._known.records.values(), *self._file.listed.keys.values())
        return any(record.is_valid(now) for record in records)

    def find(self, text: str) -> Caller | None:
        """Return the caller with the key `text`, or None if it is not valid.

        An unknown id and a wrong secret take the same steps, so that timing does not differ.
        """
        known, listed = self._known, self._file.listed.keys
        key = parse_key(text)
        if key is None:
            return None
        stored, in_file = known.records.get(key.id), listed.get(key.id)
        is_stored = _are_same(key_digest(key, known.secret), stored)
        is_in_file = _are_same(bytes.fromhex(key.sha256), in_file)
        record, is_right = (in_file, is_in_file) if in_file else (stored, is_stored)
        if record is None or not is_right:
            return None
        found = Caller(record.tenant, Role(record.role), record.id)
        return found if self.is_valid(found) else None

    def is_valid(self, caller: Caller) -> bool:
        """Return whether the key of a caller is still valid, with the same tenant and role."""
        listed = self._file.listed.keys.get(caller.key_id)
        stored = self._known.records.get(caller.key_id)
        record, now = listed or stored, self._now()
        if record is None or (record.tenant, record.role) != (caller.tenant, caller.role.value):
            return False
        return record.is_valid(now) and (stored is None or stored.is_valid(now))

    def refresh(self) -> None:
        """Reload the keys of the catalog if they changed.

        Raises:
            ServerSecretError: The new keys cannot be checked; the old ones stay in effect.
        """
        if self._records.revision() != self._known.revision:
            self._known = self._read()

    def _read(self) -> _Known:
        # The revision first: a change in between then triggers another read.
        revision = self._records.revision()
        records = {record.id: record for record in self._records.all()}
        is_needed = any(record.revoked_at is None for record in records.values())
        return _Known(revision, records, read_secret(self._folder) if is_needed else b"")


def _are_same(digest: bytes, record: KeyRecord | None) -> bool:
    """Compare digests in constant time, whether there is a record or not."""
    return hmac.compare_digest(digest, bytes.fromhex(record.digest if record else _NOBODY))
