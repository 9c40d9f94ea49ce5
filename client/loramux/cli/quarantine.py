"""`loramux quarantine`: what a server does not run any more."""

import dataclasses
import json
from typing import Annotated

import typer

from loramux.cli.options import DEFAULT_SERVER, Json, Server
from loramux.cli.tables import show
from loramux.client import Client

app = typer.Typer(
    help="See what a server does not run any more, and let it run again.",
    no_args_is_help=True,
    rich_markup_mode=None,
)


@app.command("ls")
def ls(server: Server = DEFAULT_SERVER, as_json: Json = False) -> None:
    """List requests and adapters that are refused: the engine died with them, or they overflow."""
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
    key: Annotated[str, typer.Argument(help="A key that ls shows, or a reference.")],
    server: Server = DEFAULT_SERVER,
) -> None:
    """Let a request or adapter run again."""
    with Client(server) as client:
        client.clear_quarantined(key)
