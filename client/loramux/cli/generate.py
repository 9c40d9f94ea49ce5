"""`loramux generate`."""

import dataclasses
import json
import sys
from typing import Annotated

import typer

from loramux.cli.options import DEFAULT_SERVER, Json, Server
from loramux.client import Client
from loramux.types import SamplingOptions


def generate(
    prompt: Annotated[str, typer.Argument(help="Text to continue; - reads it from stdin.")],
    adapter: Annotated[
        str | None,
        typer.Option(
            "--adapter", "-a", help="Adapter, NAME or NAME:TAG; the base model if left out."
        ),
    ] = None,
    routing_key: Annotated[
        str, typer.Option(help="Equal keys get the same version of an alias that is split.")
    ] = "",
    max_tokens: Annotated[int | None, typer.Option(help="Most tokens to make.")] = None,
    temperature: Annotated[float | None, typer.Option(help="0 takes the likeliest token.")] = None,
    top_p: Annotated[float | None, typer.Option(help="Keep this much probability.")] = None,
    top_k: Annotated[int | None, typer.Option(help="Keep so many tokens.")] = None,
    seed: Annotated[int | None, typer.Option(help="Makes sampling reproducible.")] = None,
    stop: Annotated[list[str] | None, typer.Option(help="Stop string; repeatable.")] = None,
    server: Server = DEFAULT_SERVER,
    as_json: Json = False,
) -> None:
    """Continue a prompt and print the text as it comes."""
    if prompt == "-":
        prompt = sys.stdin.read()
    given = {
        "max_tokens": max_tokens,
        "temperature": temperature,
        "top_p": top_p,
        "top_k": top_k,
        "seed": seed,
        "stop": stop or None,
    }
    sampling = SamplingOptions(
        **{name: value for name, value in given.items() if value is not None}  # type: ignore[typeddict-item]
    )
    with Client(server) as client:
        if as_json:
            answer = client.generate(prompt, adapter=adapter, routing_key=routing_key, **sampling)
            print(json.dumps(dataclasses.asdict(answer)))
            return
        chunks = client.stream(prompt, adapter=adapter, routing_key=routing_key, **sampling)
        for chunk in chunks:
            print(chunk.text, end="", flush=True)
        print()
