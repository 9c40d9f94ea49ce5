"""`loramux push`, `ls` and `rm`."""

import dataclasses
import json
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn
from rich.table import Table

from loramux.cli.options import DEFAULT_SERVER, Json, Server
from loramux.client import Client
from loramux.types import Adapter


def push(
    path: Annotated[Path, typer.Argument(help="PEFT folder or package.")],
    name: Annotated[
        str | None, typer.Option("--name", "-n", help="Name; that of the path if left out.")
    ] = None,
    must_not_exist: Annotated[
        bool, typer.Option("--must-not-exist", help="Refuse to replace other content.")
    ] = False,
    server: Server = DEFAULT_SERVER,
    as_json: Json = False,
) -> None:
    """Upload an adapter and register it under a name."""
    console = Console(stderr=True)
    columns = (
        TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn(),
    )  # fmt: skip
    with (
        Client(server) as client,
        Progress(*columns, console=console, disable=as_json or not console.is_terminal) as bar,
    ):
        chosen = name or (path.name if path.is_dir() else path.stem)
        task = bar.add_task(chosen, total=None)
        adapter = client.adapters.upload(
            chosen,
            path,
            must_not_exist=must_not_exist,
            progress=lambda sent, total: bar.update(task, completed=sent, total=total),
        )
    print(json.dumps(_plain(adapter)) if as_json else f"{adapter.reference} {adapter.digest}")


def ls(
    all_versions: Annotated[
        bool, typer.Option("--all-versions", "-a", help="Every version, not only the newest.")
    ] = False,
    server: Server = DEFAULT_SERVER,
    as_json: Json = False,
) -> None:
    """List the registered adapters."""
    with Client(server) as client:
        found = client.adapters.list(all_versions=all_versions)
    if as_json:
        print(json.dumps([_plain(adapter) for adapter in found]))
        return
    table = Table(box=None, pad_edge=False)
    for heading in ("name", "aliases", "rank", "targets", "size", "tier", "source", "digest"):
        table.add_column(heading, justify="right" if heading in ("rank", "size") else "left")
    for adapter in found:
        table.add_row(
            adapter.reference,
            " ".join(adapter.aliases),
            str(adapter.rank),
            " ".join(adapter.target_modules),
            f"{adapter.size_bytes / 1e6:.1f} MB",
            adapter.tier,
            adapter.source,
            adapter.digest[:19],
        )
    Console().print(table)


def rm(
    references: Annotated[
        list[str], typer.Argument(help="Adapters to take away, or versions, as NAME:VERSION.")
    ],
    server: Server = DEFAULT_SERVER,
) -> None:
    """Take adapters away; requests that use one already finish with it."""
    with Client(server) as client:
        for reference in references:
            client.adapters.delete(reference)


def _plain(adapter: Adapter) -> dict[str, object]:
    return dataclasses.asdict(adapter) | {"created_at": adapter.created_at.isoformat()}
