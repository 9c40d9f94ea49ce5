"""`loramux push`, `import`, `pull`, `ls`, `rm` and `ttl`."""

import dataclasses
import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

from loramux.cli.hub import local
from loramux.cli.listing import property_table, state_of, usage_table
from loramux.cli.options import DEFAULT_SERVER, TTL, Json, Reference, Server, parse_duration
from loramux.cli.tables import table_console
from loramux.client import Client
from loramux.types import Adapter


def push(
    source: Annotated[
        str,
        typer.Argument(
            help="Package to upload, or what `pack` accepts: a folder, a file or hf://ORG/NAME."
        ),
    ],
    name: Annotated[
        str | None,
        typer.Option(
            "--name", "-n", help="Name to register it under; default: that of the file or folder."
        ),
    ] = None,
    must_not_exist: Annotated[
        bool, typer.Option("--must-not-exist", help="Fail if the name already has other content.")
    ] = False,
    ttl: TTL = None,
    server: Server = DEFAULT_SERVER,
    as_json: Json = False,
) -> None:
    """Upload an adapter and register it under a name."""
    stays = None if ttl is None else parse_duration(ttl)
    with (
        Client(server) as client,
        local(source, quiet=as_json) as (path, known_as),
        _bar(as_json) as bar,
    ):
        chosen = name or (known_as if path.is_dir() else path.stem)
        adapter = client.adapters.upload(
            chosen, path, must_not_exist=must_not_exist, ttl=stays, progress=_progress(bar, chosen)
        )
    _warn(adapter)
    print(json.dumps(plain(adapter)) if as_json else f"{adapter.reference} {adapter.digest}")


def import_adapter(
    uri: Annotated[
        str,
        typer.Argument(
            help="Where a package or PEFT folder is: hf://ORG/NAME[@REVISION][/PATH], "
            "s3://, gs:// or az:// with bucket and path, or oci://HOST/REPOSITORY[:TAG]."
        ),
    ],
    name: Annotated[
        str | None,
        typer.Option(
            "--name", "-n", help="Name to register it under; default: the last part of the URI."
        ),
    ] = None,
    must_not_exist: Annotated[
        bool, typer.Option("--must-not-exist", help="Fail if the name already has other content.")
    ] = False,
    ttl: TTL = None,
    server: Server = DEFAULT_SERVER,
    as_json: Json = False,
) -> None:
    """Let the server fetch an adapter from a URI and register it."""
    stays = None if ttl is None else parse_duration(ttl)
    last = re.split("[@:]", uri.rstrip("/").rpartition("/")[2])[0].removesuffix(".safetensors")
    with Client(server) as client:
        adapter = client.adapters.import_from(
            name or last.lower(), uri, must_not_exist=must_not_exist, ttl=stays
        )
    _warn(adapter)
    print(json.dumps(plain(adapter)) if as_json else f"{adapter.reference} {adapter.digest}")


def pull(
    reference: Reference,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="File to write; default: NAME.safetensors."),
    ] = None,
    server: Server = DEFAULT_SERVER,
    as_json: Json = False,
) -> None:
    """Download the package of an adapter."""
    with Client(server) as client, _bar(as_json) as bar:
        target = output or Path(f"{client.adapters.get(reference).name}.safetensors")
        adapter = client.adapters.download(reference, target, progress=_progress(bar, target.name))
    if as_json:
        print(json.dumps(plain(adapter) | {"path": str(target)}))
    else:
        print(f"{target} {adapter.digest}")


def ls(
    all_versions: Annotated[
        bool, typer.Option("--all-versions", "-a", help="List every version, not only the newest.")
    ] = False,
    usage: Annotated[
        bool, typer.Option("--usage", "-u", help="Show usage instead of properties.")
    ] = False,
    tenant: Annotated[str, typer.Option(help="List only adapters of this tenant.")] = "",
    prefix: Annotated[str, typer.Option(help="List only names with this prefix.")] = "",
    source: Annotated[
        str, typer.Option(help="List only adapters that came from: upload, directory or import.")
    ] = "",
    tier: Annotated[
        str, typer.Option(help="List only adapters in this tier: stored, host or device.")
    ] = "",
    wide: Annotated[
        bool, typer.Option("--wide", "-w", help="Show all target modules, and digests.")
    ] = False,
    server: Server = DEFAULT_SERVER,
    as_json: Json = False,
) -> None:
    """List the registered adapters."""
    with Client(server) as client:
        found = client.adapters.list(
            all_versions=all_versions,
            tenant=tenant,
            name_prefix=prefix,
            source=source,
            tier=tier,
        )
    if as_json:
        print(json.dumps([plain(adapter) for adapter in found]))
        return
    table = usage_table(found) if usage else property_table(found, wide=wide)
    table_console(wide=wide).print(table)


def rm(
    references: Annotated[
        list[str], typer.Argument(help="Adapters to delete; NAME:VERSION deletes one version.")
    ],
    wait: Annotated[
        bool,
        typer.Option(
            "--wait", help="Return only when no call uses it any more and its memory is free."
        ),
    ] = False,
    server: Server = DEFAULT_SERVER,
) -> None:
    """Delete adapters or versions; requests that use them finish."""
    with Client(server) as client:
        for reference in references:
            client.adapters.delete(reference, wait=wait)


def ttl(
    reference: Reference,
    time: Annotated[
        str,
        typer.Argument(
            help="Time to live from now on, such as 90s, 30m, 12h or 7d; `none` for no expiry."
        ),
    ],
    server: Server = DEFAULT_SERVER,
    as_json: Json = False,
) -> None:
    """Set when a version expires; it is then deleted as by `rm`."""
    stays = None if time == "none" else parse_duration(time)
    with Client(server) as client:
        adapter = client.adapters.set_ttl(reference, stays)
    print(json.dumps(plain(adapter)) if as_json else f"{adapter.reference} {state_of(adapter)}")


def _warn(adapter: Adapter) -> None:
    """Warn on stderr if an adapter seems to be made for another base model."""
    if adapter.other_base:
        print(
            f"loramux: warning: {adapter.reference} seems to be made for another base model: "
            f"{adapter.other_base}",
            file=sys.stderr,
        )


def plain(adapter: Adapter) -> dict[str, object]:
    """Return `adapter` as a dict that can be encoded as JSON."""
    values = dataclasses.asdict(adapter)
    for moments, field in (
        (values, "created_at"),
        (values, "expires_at"),
        (values["status"], "last_used_at"),
    ):
        moments[field] = moments[field] and moments[field].isoformat()
    return values


def _bar(is_quiet: bool) -> Progress:
    console = Console(stderr=True)
    columns = (
        TextColumn("{task.description}", markup=False), BarColumn(), DownloadColumn(),
        TransferSpeedColumn(), TimeRemainingColumn(),
    )  # fmt: skip
    return Progress(*columns, console=console, disable=is_quiet or not console.is_terminal)


def _progress(bar: Progress, what: str) -> Callable[[int, int], None]:
    task = bar.add_task(what, total=None)
    return lambda done, total: bar.update(task, completed=done, total=total)
