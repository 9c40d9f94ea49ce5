"""Options that several commands share, and what a command says that lacks a package."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated

import typer

Server = Annotated[
    str,
    typer.Option(
        "--server", "-s", envvar="LORAMUX_SERVER", metavar="HOST:PORT", help="The server to call."
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")]
Reference = Annotated[
    str, typer.Argument(help="Adapter, [TENANT/]NAME[:TAG][@DIGEST]; the newest without a tag.")
]

DEFAULT_SERVER = "127.0.0.1:50051"


@contextmanager
def needs(*modules: str, extra: str, what: str) -> Iterator[None]:
    """Import in here what a bare installation lacks; a lack ends the command with what to install.

    Args:
        *modules: The packages that may be missing.
        extra: The extra of loramux that brings them.
        what: Who needs it.
    """
    try:
        yield
    except ImportError as error:
        module = (error.name or "").partition(".")[0]
        if module not in modules:
            raise
        print(f"loramux: {what} needs {module}: pip install 'loramux[{extra}]'", file=sys.stderr)
        raise typer.Exit(1) from None
