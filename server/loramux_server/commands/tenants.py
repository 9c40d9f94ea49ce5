"""`loramux tenants`: limits of tenants, and disabling them.

Like `loramux keys`, the commands work on the catalog in the server's store, whether or not a server
runs on it; a running one notices within a second.
"""

import datetime
import json
import math
import sys
from dataclasses import asdict, replace
from typing import Annotated

import typer

from loramux.cli.options import Json
from loramux.cli.tables import show
from loramux_adapters import check_name
from loramux_server.commands.stores import (
    AuditLog,
    CatalogUrl,
    Store,
    audited_by_user,
    found_store,
    open_catalog,
)
from loramux_server.store.policy import Policy
from loramux_server.store.reference import DEFAULT_TENANT
from loramux_server.store.times import now_in_utc

app = typer.Typer(
    help="Set limits of tenants, list them, disable and enable tenants.",
    no_args_is_help=True,
    rich_markup_mode=None,
)

Tenant = Annotated[str, typer.Argument(help="Name of the tenant.")]
_ANY = "any"


@app.command("set")
def set_policy(
    tenant: Tenant,
    requests_per_second: Annotated[
        str | None, typer.Option(metavar="NUMBER|any", help="Rate limit: requests per second.")
    ] = None,
    tokens_per_minute: Annotated[
        str | None,
        typer.Option(
            metavar="NUMBER|any", help="Rate limit: prompt and completion tokens per minute."
        ),
    ] = None,
    concurrent: Annotated[
        str | None,
        typer.Option(metavar="NUMBER|any", help="Maximum number of concurrent requests."),
    ] = None,
    weight: Annotated[
        int | None,
        typer.Option(
            min=1, max=10_000, help="Fair-share weight on a busy server, relative to other tenants."
        ),
    ] = None,
    store: Store = None,
    url: CatalogUrl = None,
    audit_log: AuditLog = None,
) -> None:
    """Set limits of a tenant; options not given stay unchanged."""
    check_name(tenant, "tenant name")
    given: dict[str, object] = {}
    if requests_per_second is not None:
        given["requests_per_second"] = _limit(requests_per_second)
    if tokens_per_minute is not None:
        given["tokens_per_minute"] = _count(tokens_per_minute)
    if concurrent is not None:
        given["concurrent_requests"] = _count(concurrent)
    if weight is not None:
        given["weight"] = weight
    act = audited_by_user(audit_log, "tenant.set", tenant=tenant, **given)
    with open_catalog(found_store(store), url) as catalog, act:
        known = {policy.tenant: policy for policy in catalog.policies.all()}
        catalog.policies.set(replace(known.get(tenant, Policy(tenant=tenant)), **given))  # type: ignore[arg-type]


@app.command("clear")
def clear(
    tenant: Tenant,
    store: Store = None,
    url: CatalogUrl = None,
    audit_log: AuditLog = None,
) -> None:
    """Remove all limits of a tenant."""
    act = audited_by_user(audit_log, "tenant.clear", tenant=tenant)
    with open_catalog(found_store(store), url) as catalog, act:
        if not catalog.policies.remove(tenant):
            print(f"loramux: tenant {tenant!r} has no limits", file=sys.stderr)
            raise typer.Exit(1)


@app.command("disable")
def disable(
    tenant: Tenant,
    store: Store = None,
    url: CatalogUrl = None,
    audit_log: AuditLog = None,
) -> None:
    """Disable a tenant: refuse all its calls.

    A running server ends calls in progress within a second. Its keys, limits and adapters
    stay as they are.
    """
    check_name(tenant, "tenant name")
    if tenant == DEFAULT_TENANT:
        raise typer.BadParameter(
            f"{tenant!r} is shared by all tenants and cannot be disabled; "
            "`loramux keys revoke` revokes its keys one by one"
        )
    act = audited_by_user(audit_log, "tenant.disable", tenant=tenant)
    with open_catalog(found_store(store), url) as catalog, act:
        now = now_in_utc()
        if not catalog.disabled_tenants.add(tenant, now):
            print(f"loramux: tenant {tenant!r} is already disabled", file=sys.stderr)
            raise typer.Exit(1)
        held = [record for record in catalog.keys.all() if record.tenant == tenant]
        num_keys = sum(record.is_valid(now) for record in held)
    # An unexpected number hints at a mistyped name.
    print(f"tenant {tenant} is disabled; it has {num_keys} valid keys", file=sys.stderr)


@app.command("enable")
def enable(
    tenant: Tenant,
    store: Store = None,
    url: CatalogUrl = None,
    audit_log: AuditLog = None,
) -> None:
    """Enable a disabled tenant again; its keys are unchanged."""
    act = audited_by_user(audit_log, "tenant.enable", tenant=tenant)
    with open_catalog(found_store(store), url) as catalog, act:
        if not catalog.disabled_tenants.remove(tenant):
            print(f"loramux: tenant {tenant!r} is not disabled", file=sys.stderr)
            raise typer.Exit(1)


@app.command("ls")
def ls(store: Store = None, url: CatalogUrl = None, as_json: Json = False) -> None:
    """List the tenants that have keys or limits, or are disabled."""
    with open_catalog(found_store(store), url) as catalog:
        known = {policy.tenant: policy for policy in catalog.policies.all()}
        disabled = catalog.disabled_tenants.all()
        holders = {record.tenant for record in catalog.keys.all()}
    tenants = sorted(holders | known.keys() | disabled.keys())
    policies = [known.get(tenant, Policy(tenant=tenant)) for tenant in tenants]
    if as_json:
        since = {tenant: moment.isoformat() for tenant, moment in disabled.items()}
        print(json.dumps([asdict(p) | {"disabled_at": since.get(p.tenant)} for p in policies]))
        return
    rows = []
    for policy in policies:
        limits = (
            policy.requests_per_second, policy.tokens_per_minute, policy.concurrent_requests
        )  # fmt: skip
        shown = [_ANY if limit is None else f"{limit:,}" for limit in limits]
        rows.append([policy.tenant, *shown, policy.weight, _state(disabled.get(policy.tenant))])
    show("tenant requests/s tokens/min concurrent weight state", rows)


def _state(disabled_at: datetime.datetime | None) -> str:
    if disabled_at is None:
        return "enabled"
    return f"disabled {disabled_at.astimezone():%Y-%m-%d %H:%M}"


def _limit(text: str) -> float | None:
    """Parse a number, or `any` as None.

    Raises:
        typer.BadParameter: It is neither.
    """
    if text == _ANY:
        return None
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not 0 < number < 1e9:
        raise typer.BadParameter(f"{text!r} is not valid; expected a number above 0, or {_ANY!r}")
    return number


def _count(text: str) -> int | None:
    number = _limit(text)
    if number is not None and not number.is_integer():
        raise typer.BadParameter(f"{text!r} is not valid; expected an integer, or {_ANY!r}")
    return None if number is None else int(number)
