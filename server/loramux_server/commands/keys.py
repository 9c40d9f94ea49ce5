"""`loramux keys`: the API keys of a server.

The commands work on the catalog in the server's store, whether or not a server runs on it. So the
first key can be made before anybody can call. Only who may write to the store can make keys: a
stolen key cannot make another, and no new key ever goes over the network.
"""

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from loramux.cli.options import Json, parse_duration
from loramux.cli.tables import show
from loramux_server.access.caller import Role
from loramux_server.access.key import Key, new_key, parse_key
from loramux_server.access.server_secret import ServerSecretError
from loramux_server.commands.stores import (
    AuditLog,
    CatalogUrl,
    Store,
    audited_by_user,
    found_store,
    open_catalog,
)
from loramux_server.store.reference import DEFAULT_TENANT
from loramux_server.store.times import now_in_utc

if TYPE_CHECKING:
    from loramux_server.access.key_manager import KeyManager
    from loramux_server.store.key_records import KeyRecord

app = typer.Typer(
    help="Create, list, rotate and revoke the API keys of a server.",
    no_args_is_help=True,
    rich_markup_mode=None,
)

KeyId = Annotated[
    str,
    typer.Argument(metavar="ID", help="Id of the key, as in lmx_ID_SECRET."),
]
Tenant = Annotated[
    str,
    typer.Option(
        help="Tenant of the key; names without a tenant refer to this one. Adapters of `public` "
        "are visible to all tenants."
    ),
]
RoleOption = Annotated[
    Role,
    typer.Option(
        "--role",
        help="Permissions: viewer lists and describes; user also generates; "
        "publisher also uploads, deletes and moves aliases; admin may do all of this for "
        "every tenant, and pin.",
    ),
]
Label = Annotated[str, typer.Option(help="Note on what the key is for.")]
Expires = Annotated[
    str | None,
    typer.Option(metavar="TIME", help="Lifetime of the key, such as 90d; default: no expiry."),
]

AccessFile = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        help="Add the key to this access file, for `loramux serve --access FILE`, "
        "instead of to the store.",
    ),
]


@app.command("create")
def create(
    tenant: Tenant = DEFAULT_TENANT,
    role: RoleOption = Role.USER,
    label: Label = "",
    expires: Expires = None,
    access: AccessFile = None,
    store: Store = None,
    url: CatalogUrl = None,
    audit_log: AuditLog = None,
) -> None:
    """Create a key and print it; it is not shown again."""
    from loramux_server.access.access_file import append_key
    from loramux_server.access.key_manager import new_record

    lifetime = parse_duration(expires) if expires else None
    act = audited_by_user(audit_log, "key.create", tenant=tenant, role=str(role))
    try:
        if access:
            with act as details:
                key = new_key()
                record = new_record(
                    key.id, key.sha256, tenant=tenant, role=role, label=label, lifetime=lifetime
                )
                append_key(access, record)
                details["key"] = key.id
        else:
            with _key_manager(store, url) as manager, act as details:
                key = manager.make(tenant=tenant, role=role, label=label, lifetime=lifetime)
                details["key"] = key.id
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None
    _show(key, f"{role} of tenant {tenant}")
    _warn_if_shared(tenant)


@app.command("add")
def add(
    file: Annotated[
        Path,
        typer.Argument(
            help="File with a key as printed by `create`; - is standard input.",
        ),
    ],
    tenant: Tenant = DEFAULT_TENANT,
    role: RoleOption = Role.USER,
    label: Label = "",
    expires: Expires = None,
    store: Store = None,
    url: CatalogUrl = None,
    audit_log: AuditLog = None,
) -> None:
    """Add a key created for another server, to share it."""
    is_input = str(file) == "-"
    try:
        text = sys.stdin.buffer.read() if is_input else file.read_bytes()
    except OSError as error:
        raise typer.BadParameter(f"{file}: {error.strerror}") from None
    if (key := parse_key(text.decode(errors="replace").strip())) is None:
        raise typer.BadParameter(f"{file} does not contain a key of the form lmx_ID_SECRET")
    lifetime = parse_duration(expires) if expires else None
    act = audited_by_user(audit_log, "key.add", tenant=tenant, role=str(role), key=key.id)
    with _key_manager(store, url) as manager, act:
        try:
            is_new = manager.add(key, tenant=tenant, role=role, label=label, lifetime=lifetime)
        except ValueError as error:
            raise typer.BadParameter(str(error)) from None
    what = f"{role} of tenant {tenant}"
    note = "" if is_new else ", exists already and keeps its label and expiry"
    print(f"key {key.id}, {what}{note}", file=sys.stderr)
    _warn_if_shared(tenant)


@app.command("rotate")
def rotate(
    key_id: KeyId,
    grace: Annotated[
        str, typer.Option(metavar="TIME", help="Grace period during which the old key stays valid.")
    ] = "24h",
    store: Store = None,
    url: CatalogUrl = None,
    audit_log: AuditLog = None,
) -> None:
    """Replace a key by a new one and print that."""
    act = audited_by_user(audit_log, "key.rotate", key=key_id, grace=grace)
    with _key_manager(store, url) as manager, act as details:
        key = manager.rotate(key_id, grace=parse_duration(grace))
        details["replaced_by"] = key.id
    _show(key, f"replaces {key_id}, which stays valid for {grace}")


@app.command("revoke")
def revoke(
    key_id: KeyId, store: Store = None, url: CatalogUrl = None, audit_log: AuditLog = None
) -> None:
    """Revoke a key.

    A running server ends its calls within a second.
    """
    with _key_manager(store, url) as manager, audited_by_user(audit_log, "key.revoke", key=key_id):
        manager.revoke(key_id)


@app.command("ls")
def ls(store: Store = None, url: CatalogUrl = None, as_json: Json = False) -> None:
    """List all keys ever created, without their secrets."""
    with open_catalog(found_store(store), url) as catalog:
        records = catalog.keys.all()
    if as_json:
        print(json.dumps([_plain(record) for record in records]))
        return
    rows = []
    for record in records:
        made = f"{record.created_at.astimezone():%Y-%m-%d %H:%M}"
        rows.append([record.id, record.tenant, record.role, made, _state(record), record.label])
    show("id tenant role created state label", rows)


@contextmanager
def _key_manager(store: Path | None, url: str | None) -> "Iterator[KeyManager]":
    """Work on the keys of a store; user errors end the command with a one-line message."""
    from loramux_server.access.key_manager import KeyManager

    folder = found_store(store)
    with open_catalog(folder, url) as catalog:
        try:
            yield KeyManager(catalog.keys, folder)
        except (LookupError, ServerSecretError) as error:
            print(f"loramux: {error.args[0]}", file=sys.stderr)
            raise typer.Exit(1) from None


def _warn_if_shared(tenant: str) -> None:
    """Tell the user that adapters of the default tenant are visible to all."""
    if tenant == DEFAULT_TENANT:
        print(
            f"adapters of tenant {DEFAULT_TENANT} are visible to every tenant; for private "
            "adapters, give the key another --tenant",
            file=sys.stderr,
        )


def _show(key: Key, what: str) -> None:
    """Print a key to stdout and a description of it to stderr."""
    print(f"key {key.id}, {what}; it is not shown again:", file=sys.stderr)
    print(key.text)


def _state(record: "KeyRecord") -> str:
    if record.revoked_at:
        return f"revoked {record.revoked_at.astimezone():%Y-%m-%d %H:%M}"
    if record.expires_at is None:
        return "valid"
    word = "valid until" if record.is_valid(now_in_utc()) else "expired"
    return f"{word} {record.expires_at.astimezone():%Y-%m-%d %H:%M}"


def _plain(record: "KeyRecord") -> dict[str, object]:
    times = {
        name: moment.isoformat() if (moment := getattr(record, name)) else None
        for name in ("created_at", "expires_at", "revoked_at")
    }
    return {
        "id": record.id,
        "tenant": record.tenant,
        "role": record.role,
        "label": record.label,
        "is_valid": record.is_valid(now_in_utc()),
        **times,
    }
