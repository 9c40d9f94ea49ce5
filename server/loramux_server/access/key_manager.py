"""Creating, rotating and revoking keys."""

import datetime
from dataclasses import replace
from pathlib import Path

from loramux_adapters import check_name
from loramux_server.access.caller import Role
from loramux_server.access.key import Key, key_digest, new_key
from loramux_server.access.server_secret import make_secret, read_secret
from loramux_server.store.key_records import KeyRecord, KeyRecords
from loramux_server.store.times import now_in_utc

MAX_LABEL = 128


def new_record(
    key_id: str,
    digest: str,
    *,
    tenant: str,
    role: Role,
    label: str = "",
    lifetime: datetime.timedelta | None = None,
) -> KeyRecord:
    """Return the catalog record of a key created now.

    Raises:
        PackageError: `tenant` is not a valid name.
        ValueError: `label` is too long, or not printable.
    """
    check_name(tenant, "tenant name")
    if len(label) > MAX_LABEL or not label.isprintable():
        raise ValueError(f"label is {label!r}; expected {MAX_LABEL} printable characters")
    now = now_in_utc()
    return KeyRecord(
        id=key_id, tenant=tenant, role=role.value, label=label, digest=digest, created_at=now,
        expires_at=now + lifetime if lifetime else None,
    )  # fmt: skip


class KeyManager:
    """Creates, rotates and revokes the keys of one store."""

    def __init__(self, records: KeyRecords, folder: Path) -> None:
        """Work on `records` of the store in `folder`."""
        self._records = records
        self._folder = folder

    def make(
        self,
        *,
        tenant: str,
        role: Role,
        label: str = "",
        lifetime: datetime.timedelta | None = None,
    ) -> Key:
        """Create a key and return it; its text is not stored and cannot be recovered.

        Args:
            tenant: The tenant of its callers.
            role: Their role.
            label: What it is for.
            lifetime: Time until it expires; None for never.

        Raises:
            PackageError: `tenant` is not a valid name.
            ValueError: `label` is too long, or not printable.
            ServerSecretError: The secret of the store cannot be used.
        """
        key = new_key()
        self.add(key, tenant=tenant, role=role, label=label, lifetime=lifetime)
        return key

    def add(
        self,
        key: Key,
        *,
        tenant: str,
        role: Role,
        label: str = "",
        lifetime: datetime.timedelta | None = None,
    ) -> bool:
        """Add `key`, which may come from another store, and return whether it is new here.

        Args:
            key: The key; only its digest with the secret of this store is stored.
            tenant: The tenant of its callers.
            role: Their role.
            label: What it is for.
            lifetime: Time until it expires here; None for never.

        Raises:
            PackageError: `tenant` is not a valid name.
            ValueError: `label` is too long, or not printable.
            LookupError: A key with this id exists, and has another secret, tenant or role, or is
                no longer valid.
            ServerSecretError: The secret of the store cannot be used.
        """
        record = new_record(key.id, "", tenant=tenant, role=role, label=label, lifetime=lifetime)
        record = replace(record, digest=self._digest(key))
        if all(known.id != key.id for known in self._records.all()):
            self._records.add(record)
            return True
        known = self._valid(key.id)
        if (known.tenant, known.role) != (tenant, role.value):
            raise LookupError(
                f"key {key.id!r} already exists, as {known.role} of tenant {known.tenant}"
            )
        if known.digest != record.digest:
            raise LookupError(f"key {key.id!r} already exists, with another secret")
        return False

    def rotate(self, key_id: str, *, grace: datetime.timedelta) -> Key:
        """Create a key with the tenant, role and label of an old one; that ends after `grace`.

        The new key gets the lifetime that the old one was created with.

        Raises:
            LookupError: There is no such key, or it is no longer valid.
            ServerSecretError: The secret of the store cannot be used.
        """
        old, now = self._valid(key_id), now_in_utc()
        lifetime = old.expires_at - old.created_at if old.expires_at else None
        key = new_key()
        record = replace(
            old,
            id=key.id,
            digest=self._digest(key),
            created_at=now,
            expires_at=now + lifetime if lifetime else None,
        )
        self._records.replace(key_id, record, until=now + grace)
        return key

    def revoke(self, key_id: str) -> None:
        """Revoke a key with immediate effect.

        Raises:
            LookupError: There is no such key, or it is no longer valid.
        """
        self._records.revoke(self._valid(key_id).id, now_in_utc())

    def _digest(self, key: Key) -> str:
        # With keys in use, a new secret would silently invalidate all of them.
        are_good = any(record.revoked_at is None for record in self._records.all())
        secret = read_secret(self._folder) if are_good else make_secret(self._folder)
        return key_digest(key, secret).hex()

    def _valid(self, key_id: str) -> KeyRecord:
        for record in self._records.all():
            if record.id == key_id:
                if not record.is_valid(now_in_utc()):
                    raise LookupError(f"key {key_id!r} was revoked, or has expired")
                return record
        raise LookupError(f"there is no key {key_id!r}; `loramux keys ls` shows all")
