"""`loramux classify`."""

import dataclasses
import json
import sys
from typing import Annotated

import typer

from loramux._classification_types import TextLabels
from loramux.cli.options import DEFAULT_SERVER, Json, Server
from loramux.cli.sampling import RoutingKey
from loramux.client import Client


def classify(
    texts: Annotated[
        list[str], typer.Argument(help="Texts to classify; - reads one a line from stdin.")
    ],
    adapter: Annotated[
        str, typer.Option("--adapter", "-a", help="Adapter that classifies, NAME or NAME:TAG.")
    ],
    top_k: Annotated[
        int | None,
        typer.Option(help="Labels of each text or token; all of a text, one of a token if absent."),
    ] = None,
    logits: Annotated[bool, typer.Option("--logits", help="Add logits to --json.")] = False,
    routing_key: RoutingKey = "",
    server: Server = DEFAULT_SERVER,
    as_json: Json = False,
) -> None:
    """Label texts, or each of their tokens."""
    if texts == ["-"]:
        texts = [line.rstrip("\n") for line in sys.stdin]
    with Client(server) as client:
        answer = client.classify(
            texts, adapter=adapter, top_k=top_k, logits=logits, routing_key=routing_key
        )
    if as_json:
        print(json.dumps(dataclasses.asdict(answer)))
        return
    for text, result in zip(texts, answer.results, strict=True):
        for line in _lines(text, result):
            print(line)


def _lines(text: str, result: TextLabels) -> list[str]:
    if not result.tokens:
        return ["  ".join(f"{each.label} {each.score:.4f}" for each in result.labels)]
    return [
        f"{token.label}\t{token.score:.4f}\t{text[token.begin : token.end]}"
        for token in result.tokens
        if token.begin is not None
    ]
