"""`loramux classify`."""

import dataclasses
import json
import sys
from collections.abc import Sequence
from typing import Annotated

import typer

from loramux._classification_types import TextLabels
from loramux.cli.options import DEFAULT_SERVER, Json, Server
from loramux.cli.sampling import Priority, RoutingKey
from loramux.client import Client
from loramux.errors import InvalidArgumentError


def classify(
    texts: Annotated[
        list[str], typer.Argument(help="Texts to classify; - reads one per line from stdin.")
    ],
    adapter: Annotated[
        str, typer.Option("--adapter", "-a", help="Classification adapter, NAME or NAME:TAG.")
    ],
    pair: Annotated[
        list[str] | None,
        typer.Option(
            help="Second text of a pair; repeatable: one for each text, one for all of "
            "them, or several for one text.",
        ),
    ] = None,
    top_k: Annotated[
        int | None,
        typer.Option(
            help="Number of labels per text or token; default: all of a text, one of a token."
        ),
    ] = None,
    logits: Annotated[
        bool, typer.Option("--logits", help="Include logits in the output of --json.")
    ] = False,
    routing_key: RoutingKey = "",
    priority: Priority = 0,
    server: Server = DEFAULT_SERVER,
    as_json: Json = False,
) -> None:
    """Classify texts, pairs of texts, or the tokens of texts."""
    if texts == ["-"]:
        texts = [line.rstrip("\n") for line in sys.stdin]
    given: Sequence[str | tuple[str, str]] = paired(texts, pair) if pair else texts
    with Client(server) as client:
        answer = client.classify(
            given,
            adapter=adapter,
            top_k=top_k,
            logits=logits,
            routing_key=routing_key,
            priority=priority,
        )
    if as_json:
        print(json.dumps(dataclasses.asdict(answer)))
        return
    for each, result in zip(given, answer.results, strict=True):
        for line in _lines(each if isinstance(each, str) else each[0], result):
            print(line)


def paired(texts: list[str], others: list[str]) -> list[tuple[str, str]]:
    """Return pairs of `texts` and `others`; if there is one of either, it goes with all others.

    Raises:
        InvalidArgumentError: There are several of both, and their numbers differ.
    """
    if len(texts) == 1:
        texts = texts * len(others)
    if len(others) == 1:
        others = others * len(texts)
    if len(texts) != len(others):
        raise InvalidArgumentError(
            f"there are {len(texts)} texts and {len(others)} of --pair; give one --pair for each "
            "text, or one for all",
            reason="INVALID_FIELD",
            field="inputs",
        )
    return list(zip(texts, others, strict=True))


def _lines(text: str, result: TextLabels) -> list[str]:
    if not result.tokens:
        return ["  ".join(f"{each.label} {each.score:.4f}" for each in result.labels)]
    return [
        f"{token.label}\t{token.score:.4f}\t{text[token.begin : token.end]}"
        for token in result.tokens
        if token.begin is not None
    ]
