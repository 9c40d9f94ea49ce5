"""`loramux pin`, `unpin`, `prefetch` and `watch`: residency of adapters, and changes to them."""

import contextlib
import json
from typing import Annotated

import typer

from loramux.cli.adapters import plain
from loramux.cli.listing import state_of
from loramux.cli.options import DEFAULT_SERVER, Json, Reference, Server
from loramux.client import Client
from loramux.types import Adapter


def pin(reference: Reference, server: Server = DEFAULT_SERVER, as_json: Json = False) -> None:
    """Pin a version to the device; return when it is loaded.

    It stays there, also after a restart.
    """
    with Client(server) as client:
        _show(client.adapters.pin(reference), as_json)


def unpin(reference: Reference, server: Server = DEFAULT_SERVER, as_json: Json = False) -> None:
    """Unpin a version, so that it may be evicted again."""
    with Client(server) as client:
        _show(client.adapters.unpin(reference), as_json)


def prefetch(reference: Reference, server: Server = DEFAULT_SERVER, as_json: Json = False) -> None:
    """Load a version to the device; return when it is loaded."""
    with Client(server) as client:
        _show(client.adapters.prefetch(reference), as_json)


def watch(
    name: Annotated[str, typer.Argument(help="Adapter as [TENANT/]NAME; default: all.")] = "",
    existing: Annotated[
        bool,
        typer.Option("--existing", help="Begin with the adapters that are registered already."),
    ] = False,
    server: Server = DEFAULT_SERVER,
    as_json: Json = False,
) -> None:
    """Print changes to adapters as they happen, until Ctrl-C."""
    with Client(server) as client, contextlib.suppress(KeyboardInterrupt):
        for change in client.adapters.watch(name, include_existing=existing):
            adapter = change.adapter
            if as_json:
                print(json.dumps({"kind": change.kind, "adapter": plain(adapter)}), flush=True)
            else:
                print(f"{change.kind:10} {adapter.reference} {state_of(adapter)}", flush=True)


def _show(adapter: Adapter, as_json: bool) -> None:
    print(json.dumps(plain(adapter)) if as_json else f"{adapter.reference} {state_of(adapter)}")
