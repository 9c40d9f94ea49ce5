"""`loramux embed`."""

import json
import secrets
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated

import typer

from loramux.cli.options import DEFAULT_SERVER, Server, needs
from loramux.cli.output import whole_file
from loramux.cli.sampling import Priority, RoutingKey
from loramux.client import Client

TEXTS_PER_CALL = 64
"""Texts per call."""


def embed(
    texts: Annotated[
        list[str], typer.Argument(help="Texts to embed; - reads one per line from stdin.")
    ],
    adapter: Annotated[
        str | None,
        typer.Option(
            "--adapter", "-a", help="Adapter, NAME or NAME:TAG; default: the base model alone."
        ),
    ] = None,
    pooling: Annotated[
        str | None,
        typer.Option(
            help="Pooling: last, mean or first; default: as the adapter or base model specifies."
        ),
    ] = None,
    normalize: Annotated[
        bool | None,
        typer.Option(
            "--normalize/--no-normalize",
            help="Normalize each vector to length 1; default: as the adapter or base "
            "model specifies, or else yes.",
        ),
    ] = None,
    dimensions: Annotated[
        int | None, typer.Option(help="Truncate each vector to this many dimensions.")
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            help="File to write: a NumPy array if its name ends with .npy, else JSON "
            "lines as on stdout.",
        ),
    ] = None,
    routing_key: RoutingKey = "",
    priority: Priority = 0,
    server: Server = DEFAULT_SERVER,
) -> None:
    """Embed texts as vectors.

    Prints one JSON array per text.
    """
    if texts == ["-"]:
        texts = [line.rstrip("\n") for line in sys.stdin]

    # If an alias splits traffic, the same version has to embed all texts.
    key = routing_key or secrets.token_hex(8)

    def vectors() -> Iterator[Sequence[float]]:
        named = adapter
        with Client(server) as client:
            for start in range(0, len(texts), TEXTS_PER_CALL):
                found = client.embed(
                    texts[start : start + TEXTS_PER_CALL],
                    adapter=named,
                    pooling=pooling,
                    normalize=normalize,
                    dimensions=dimensions,
                    routing_key=key,
                    priority=priority,
                )
                if found.adapter:  # keep to this version even if the name moves meanwhile
                    named = found.adapter.reference
                yield from found.vectors

    if output is None:
        for vector in vectors():
            print(_line(vector))
        return
    with whole_file(output) as file:
        if output.suffix == ".npy":
            with needs("numpy", extra="cli", what=".npy"):
                import numpy as np
            np.save(file, np.array(list(vectors()), np.float32))
        else:
            file.writelines(f"{_line(vector)}\n".encode() for vector in vectors())


def _line(vector: Sequence[float]) -> str:
    return json.dumps(list(vector), separators=(",", ":"))
