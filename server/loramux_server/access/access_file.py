"""Keys and tenants listed in a TOML file: `--access`.

Several servers can share one file, from a ConfigMap or a checkout, instead of changing the catalog
of each. It contains no secret: a key is listed by its SHA-256, from which 256 random bits cannot be
recovered.
"""

import datetime
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import msgspec
from msgspec import Meta

from loramux._certificate_files import stamps
from loramux_adapters import PackageError, check_name
from loramux_server.access.caller import Role
from loramux_server.access.key import ID_LENGTH
from loramux_server.store.key_records import KeyRecord
from loramux_server.store.policy import Policy
from loramux_server.store.reference import DEFAULT_TENANT

_Positive = Annotated[float, Meta(gt=0)]
_Count = Annotated[int, Meta(ge=1)]


class _Key(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """An entry of `[[keys]]`."""

    id: Annotated[str, Meta(pattern=rf"^[a-z0-9]{{{ID_LENGTH}}}$")]
    sha256: Annotated[str, Meta(pattern="^[0-9a-f]{64}$")]
    tenant: str = DEFAULT_TENANT
    role: Role = Role.USER
    label: str = ""
    expires: Annotated[datetime.datetime, Meta(tz=True)] | None = None


class _Tenant(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A table `[tenants.NAME]`."""

    requests_per_second: _Positive | None = None
    tokens_per_minute: _Count | None = None
    concurrent_requests: _Count | None = None
    weight: Annotated[int, Meta(ge=1, le=10_000)] = 1
    disabled: bool = False


class _Document(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    keys: list[_Key] = []
    tenants: dict[str, _Tenant] = {}


@dataclass(frozen=True, slots=True)
class Access:
    """The content of an access file."""

    keys: Mapping[str, KeyRecord] = field(default_factory=dict)
    """By id; `digest` is the SHA-256 of the key's text."""
    policies: Mapping[str, Policy] = field(default_factory=dict)
    """By tenant."""
    disabled: frozenset[str] = frozenset()
    """Tenants that may not call."""


class AccessFile:
    """The file of `--access`, reloaded when it changes. `refresh` may run in a thread."""

    def __init__(self, path: Path | None) -> None:
        """Read the file at `path`; None lists nothing.

        Raises:
            OSError: It cannot be read.
            ValueError: It is invalid; the message names file, field and value.
        """
        self._path = path
        self._stamps = self._seen = stamps(path) if path else ()
        self.listed = read_access(path) if path else Access()

    @property
    def is_given(self) -> bool:
        """Whether there is a file, even an empty one."""
        return self._path is not None

    def refresh(self) -> None:
        """Reload the file if it changed and has not changed since the previous call.

        A partly written file must not count: keys, limits and disabled tenants that are not written
        yet would be missing.

        Raises:
            OSError: It cannot be read; the previous content stays in effect.
            ValueError: It is invalid; the previous content stays in effect.
        """
        if self._path is None:
            return
        found = stamps(self._path)
        seen, self._seen = self._seen, found
        if found == self._stamps or found != seen:
            return
        listed = read_access(self._path)
        if stamps(self._path) == found:
            self.listed, self._stamps = listed, found


def read_access(path: Path) -> Access:
    """Return the content of the file at `path`.

    Raises:
        OSError: It cannot be read.
        ValueError: It is invalid; the message names file, field and value.
    """
    made_at = datetime.datetime.fromtimestamp(path.stat().st_mtime, datetime.UTC)
    return _access(path, path.read_bytes(), made_at)


def append_key(path: Path, record: KeyRecord) -> None:
    """Add an entry for a key to the file at `path`, creating the file if needed.

    Existing content, comments included, is kept, and so are its mode and a symbolic link to it.

    Args:
        path: The file.
        record: The entry; its digest is the SHA-256 of the key's text.

    Raises:
        OSError: It cannot be written.
        ValueError: The existing content is invalid, or tables cannot be appended to it.
    """
    path = path.resolve()
    before = ""
    if path.exists():
        read_access(path)
        before = path.read_text(encoding="utf-8").rstrip("\n") + "\n\n"
    entry: dict[str, object] = {
        "id": record.id, "sha256": record.digest, "tenant": record.tenant, "role": record.role,
    }  # fmt: skip
    if record.label:
        entry["label"] = record.label
    if record.expires_at:
        entry["expires"] = record.expires_at.replace(microsecond=0)
    lines = [f"{name} = {_toml(value)}\n" for name, value in entry.items()]
    content = (before + "[[keys]]\n" + "".join(lines)).encode()
    _access(path, content, record.created_at)  # fails after `keys = [...]`, for example
    partial = path.with_name(f".{path.name}.{record.id}")
    try:
        partial.write_bytes(content)
        if before:
            shutil.copymode(path, partial)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def _access(path: Path, content: bytes, made_at: datetime.datetime) -> Access:
    """Return `content` of the file at `path`, parsed and validated.

    Raises:
        ValueError: It is invalid; the message names file, field and value.
    """
    try:
        document = msgspec.toml.decode(content, type=_Document)
        keys: dict[str, KeyRecord] = {}
        for key in document.keys:
            check_name(key.tenant, f"tenant of key {key.id}")
            if key.id in keys:
                raise ValueError(f"key {key.id} is listed twice")
            keys[key.id] = KeyRecord(
                id=key.id, tenant=key.tenant, role=key.role.value, label=key.label,
                digest=key.sha256, created_at=made_at, expires_at=key.expires,
            )  # fmt: skip
        for name, tenant in document.tenants.items():
            check_name(name, "tenant name")
            if tenant.disabled and name == DEFAULT_TENANT:
                raise ValueError(f"tenant {name} is shared by all tenants and cannot be disabled")
    except (PackageError, UnicodeDecodeError, ValueError) as error:
        raise ValueError(f"--access {path}: {error}") from None
    return Access(keys, _policies(document), _disabled(document))


def _toml(value: object) -> str:
    if isinstance(value, datetime.datetime):
        return value.isoformat()
    return msgspec.json.encode(value).decode()  # JSON strings are valid TOML strings


def _policies(document: _Document) -> dict[str, Policy]:
    return {
        name: Policy(
            tenant=name, requests_per_second=tenant.requests_per_second,
            tokens_per_minute=tenant.tokens_per_minute,
            concurrent_requests=tenant.concurrent_requests, weight=tenant.weight,
        )
        for name, tenant in document.tenants.items()
    }  # fmt: skip


def _disabled(document: _Document) -> frozenset[str]:
    return frozenset(name for name, tenant in document.tenants.items() if tenant.disabled)
