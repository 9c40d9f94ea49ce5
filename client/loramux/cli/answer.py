"""`loramux answer`."""

import dataclasses
import json
import sys
from typing import Annotated

import typer

from loramux.cli.options import DEFAULT_SERVER, Json, Server
from loramux.cli.sampling import RoutingKey
from loramux.client import Client


def answer(
    question: Annotated[str, typer.Argument(help="The question.")],
    context: Annotated[
        str, typer.Argument(help="The text that has the answer; - reads it from stdin.")
    ],
    adapter: Annotated[
        str, typer.Option("--adapter", "-a", help="Adapter that answers, NAME or NAME:TAG.")
    ],
    top_k: Annotated[int, typer.Option(help="How many answers.")] = 1,
    max_answer_tokens: Annotated[int, typer.Option(help="Most tokens of an answer.")] = 15,
    impossible: Annotated[
        bool, typer.Option("--impossible", help='Let "no answer" be one; its line has no text.')
    ] = False,
    to_tokens: Annotated[
        bool, typer.Option("--to-tokens", help="Let an answer begin and end within words.")
    ] = False,
    context_first: Annotated[
        bool, typer.Option("--context-first", help="Put the context before the question.")
    ] = False,
    token_types: Annotated[
        bool,
        typer.Option("--token-types", help="Tell the model which tokens are of the second text."),
    ] = False,
    max_window_tokens: Annotated[
        int | None,
        typer.Option(help="Most tokens of question and context; a longer one is read in parts."),
    ] = None,
    window_overlap_tokens: Annotated[
        int | None, typer.Option(help="Tokens that a part has in common with the one before it.")
    ] = None,
    routing_key: RoutingKey = "",
    server: Server = DEFAULT_SERVER,
    as_json: Json = False,
) -> None:
    """Find the answer to a question in a text: score, place and text of each answer."""
    if context == "-":
        context = sys.stdin.read()
    with Client(server) as client:
        found = client.answer(
            question,
            context,
            adapter=adapter,
            top_k=top_k,
            max_answer_tokens=max_answer_tokens,
            handle_impossible_answer=impossible,
            align_to_words=not to_tokens,
            context_first=context_first,
            token_types=token_types,
            max_window_tokens=max_window_tokens,
            window_overlap_tokens=window_overlap_tokens,
            routing_key=routing_key,
        )
    if as_json:
        print(json.dumps(dataclasses.asdict(found)))
        return
    for each in found.results[0].answers:
        print(f"{each.score:.4f}\t{each.begin}-{each.end}\t{each.text}")
