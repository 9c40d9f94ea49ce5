"""`loramux alias`: tags that move from version to version."""

import dataclasses
import getpass
import json
from typing import Annotated

import typer
from rich.table import Table

from loramux.cli.options import DEFAULT_SERVER, Json, Server
from loramux.cli.tables import table_console
from loramux.client import Client

app = typer.Typer(
    help="Manage aliases: tags such as `stable` that point to versions.",
    no_args_is_help=True,
    rich_markup_mode=None,
)

Name = Annotated[str, typer.Argument(help="Adapter as [TENANT/]NAME.")]
Alias = Annotated[str, typer.Argument(help="Alias, such as stable.")]
Expected = Annotated[
    str | None,
    typer.Option(
        help="Compare and set: fail unless the alias points to this now: VERSION, "
        "VERSION=WEIGHT,…, or none if it does not exist."
    ),
]


@app.command("set")
def set_alias(
    name: Name,
    alias: Alias,
    versions: Annotated[
        list[str],
        typer.Argument(
            help="VERSION, or several to split traffic over as VERSION=WEIGHT, such as 3=95 4=5."
        ),
    ],
    expected: Expected = None,
    server: Server = DEFAULT_SERVER,
    as_json: Json = False,
) -> None:
    """Point an alias to a version, or to several by weight."""
    with Client(server) as client:
        weights = client.adapters.set_alias(
            name, alias, weights=_weights(versions), expected=_expected(expected), by=_user()
        )
    _show(name, alias, weights, as_json)


@app.command("rm")
def delete_alias(
    name: Name, alias: Alias, expected: Expected = None, server: Server = DEFAULT_SERVER
) -> None:
    """Delete an alias; its versions stay."""
    with Client(server) as client:
        client.adapters.delete_alias(name, alias, expected=_expected(expected), by=_user())


@app.command("rollback")
def roll_back(
    name: Name, alias: Alias, server: Server = DEFAULT_SERVER, as_json: Json = False
) -> None:
    """Undo the last move of an alias."""
    with Client(server) as client:
        weights = client.adapters.roll_back(name, alias, by=_user())
    _show(name, alias, weights, as_json)


@app.command("ls")
def ls(name: Name, server: Server = DEFAULT_SERVER, as_json: Json = False) -> None:
    """List the aliases of an adapter."""
    with Client(server) as client:
        aliases = client.adapters.aliases(name)
    if as_json:
        print(json.dumps(aliases))
        return
    for alias, weights in aliases.items():
        print(f"{alias} {_text(weights)}")


@app.command("log")
def log(
    name: Name,
    alias: Alias,
    limit: Annotated[
        int, typer.Option("--limit", "-n", help="Maximum number of moves to show.")
    ] = 20,
    server: Server = DEFAULT_SERVER,
    as_json: Json = False,
) -> None:
    """Show who moved an alias and when, newest first."""
    with Client(server) as client:
        moves = client.adapters.alias_moves(name, alias, limit=limit)
    if as_json:
        plain = [dataclasses.asdict(m) | {"moved_at": m.moved_at.isoformat()} for m in moves]
        print(json.dumps(plain))
        return
    table = Table("when", "who", "from", "to", box=None, pad_edge=False)
    for move in moves:
        when = move.moved_at.astimezone().isoformat(sep=" ", timespec="seconds")
        table.add_row(when, move.moved_by, _text(move.before), _text(move.after))
    table_console().print(table)


def _weights(texts: list[str]) -> dict[str, int]:
    """Return the weight of each version.

    Raises:
        typer.BadParameter: A text is neither VERSION nor VERSION=WEIGHT.
    """
    weights = {}
    for text in texts:
        version, equals, weight = text.partition("=")
        if not (version.isdecimal() and (weight.isdecimal() if equals else len(texts) == 1)):
            raise typer.BadParameter(f"{text!r} is neither VERSION=WEIGHT nor a single VERSION")
        weights[version] = int(weight or 1)
    return weights


def _expected(text: str | None) -> dict[str, int] | None:
    if text is None:
        return None
    return {} if text == "none" else _weights(text.split(","))


def _text(weights: dict[int, int]) -> str:
    if len(weights) == 1:
        return str(next(iter(weights)))
    return " ".join(f"{version}={weight}" for version, weight in weights.items()) or "none"


def _show(name: str, alias: str, weights: dict[int, int], as_json: bool) -> None:
    print(json.dumps(weights) if as_json else f"{name}:{alias} {_text(weights)}")


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a user without a name
        return ""
