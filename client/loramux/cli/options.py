"""Options that several commands share."""

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
