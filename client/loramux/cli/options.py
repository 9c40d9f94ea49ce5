"""Options that several commands share, and the message for missing packages."""

import datetime
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated

import typer

from loramux.cli.error_messages import note_command
from loramux_adapters.extras import install_command

Server = Annotated[
    str,
    typer.Option(
        "--server",
        "-s",
        envvar="LORAMUX_SERVER",
        metavar="HOST:PORT",
        help="Server to call.",
        callback=note_command,
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Reference = Annotated[
    str,
    typer.Argument(
        help="Adapter as [TENANT/]NAME[:TAG][@DIGEST]; without a tag, its newest version."
    ),
]

TTL = Annotated[
    str | None,
    typer.Option(
        "--ttl",
        metavar="TIME",
        help="Time to live, such as 90s, 30m, 12h or 7d; default: no expiry.",
    ),
]

_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}

DEFAULT_SERVER = "127.0.0.1:50051"


def parse_duration(text: str) -> datetime.timedelta:
    """Parse a duration: a number with the unit s, m, h or d.

    Raises:
        typer.BadParameter: `text` is not a duration.
    """
    number, unit = text[:-1], _UNITS.get(text[-1:])
    # More digits, which no server allows, would overflow timedelta.
    if unit is None or not (number.isascii() and number.isdecimal() and len(number) < 10):
        raise typer.BadParameter(
            f"{text!r} is not a duration; expected a number with s, m, h or d, as in 7d"
        )
    return datetime.timedelta(**{unit: int(number)})


@contextmanager
def needs(*modules: str, extra: str, what: str) -> Iterator[None]:
    """Guard imports of optional packages: if one is missing, exit and say how to install it.

    Args:
        *modules: The packages that may be missing.
        extra: The extra of loramux that installs them.
        what: The feature that needs them.
    """
    try:
        yield
    except ImportError as error:
        module = (error.name or "").partition(".")[0]
        if module not in modules:
            raise
        print(f"loramux: {what} needs {module}: {install_command(extra)}", file=sys.stderr)
        raise typer.Exit(1) from None
