"""`loramux generate`."""

import dataclasses
import json
import re
import sys
from typing import Annotated

import typer

from loramux.cli.options import DEFAULT_SERVER, Json, Server
from loramux.client import Client
from loramux.types import Generation, SamplingOptions


def generate(
    prompt: Annotated[str, typer.Argument(help="Text to continue; - reads it from stdin.")],
    adapter: Annotated[
        list[str] | None,
        typer.Option(
            "--adapter",
            "-a",
            help="Adapter, NAME or NAME:TAG; the base model if left out. Several, NAME=WEIGHT or "
            "NAME:0.5, are mixed.",
        ),
    ] = None,
    scale: Annotated[
        float | None, typer.Option(help="Multiplies what the adapter changes; 0 changes nothing.")
    ] = None,
    combination: Annotated[
        str | None, typer.Option(help="How adapters are mixed: cat (default) or linear.")
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
    single, mix = named_adapters(adapter or [])
    with Client(server) as client:
        make = client.generate if as_json else client.stream
        answer = make(
            prompt,
            adapter=single,
            adapters=mix,
            scale=scale,
            combination=combination,
            routing_key=routing_key,
            **sampling,
        )
        if isinstance(answer, Generation):
            print(json.dumps(dataclasses.asdict(answer)))
            return
        for chunk in answer:
            print(chunk.text, end="", flush=True)
        print()


_WEIGHTED = re.compile(r"(.+)(?:=(.*)|:([+-]?\d*\.\d*))")
"""A reference and its weight. What follows a colon is a weight if it has a decimal point, and else
a tag."""


def named_adapters(given: list[str]) -> tuple[str | None, list[tuple[str, float]]]:
    """Return the adapter, or those of a mix with their weights, that the command line names."""
    pairs = [_weighted(text) for text in given]
    if len(pairs) == 1 and pairs[0][1] is None:
        return pairs[0][0], []
    return None, [(name, 1.0 if weight is None else weight) for name, weight in pairs]


def _weighted(text: str) -> tuple[str, float | None]:
    found = _WEIGHTED.fullmatch(text)
    if not found:
        return text, None
    weight = found[2] if found[2] is not None else found[3]
    try:
        return found[1], float(weight)
    except ValueError:
        raise typer.BadParameter(
            f"the weight of {found[1]} is {weight!r}, not a number", param_hint="--adapter"
        ) from None
