"""`loramux quarantine`: requests and adapters that a server refuses to run."""

import dataclasses
import json
from typing import Annotated

import typer

from loramux.cli.options import DEFAULT_SERVER, Json, Server
from loramux.cli.tables import show
from loramux.client import Client

app = typer.Typer(
    help="List and clear quarantined requests and adapters.",
    no_args_is_help=True,
    rich_markup_mode=None,
)


@app.command("ls")
def ls(server: Server = DEFAULT_SERVER, as_json: Json = False) -> None:
    """List quarantined requests and adapters.

    They are refused, since the engine failed with them in flight or their weights overflow.
    """
    with Client(server) as client:
        entries = client.quarantined()
    if as_json:
        values = [
            dataclasses.asdict(entry) | {"since": entry.since.isoformat()} for entry in entries
        ]
        print(json.dumps(values))
        return
    show(
        "key adapters since cause",
        (
            (entry.key, ", ".join(entry.adapters) or None, f"{entry.since:%F %T}", entry.cause)
            for entry in entries
        ),
    )


@app.command("clear")
def clear(
    key: Annotated[str, typer.Argument(help="Key shown by `ls`, or a reference to an adapter.")],
    server: Server = DEFAULT_SERVER,
) -> None:
    """Release a request or adapter from quarantine."""
    with Client(server) as client:
        client.clear_quarantined(key)
