"""`loramux answer`."""

import dataclasses
import json
import sys
from typing import Annotated

import typer

from loramux.cli.options import DEFAULT_SERVER, Json, Server
from loramux.cli.sampling import Priority, RoutingKey
from loramux.client import Client


def answer(
    question: Annotated[str, typer.Argument(help="Question to answer.")],
    context: Annotated[
        str, typer.Argument(help="Text to find the answer in; - reads it from stdin.")
    ],
    adapter: Annotated[
        str, typer.Option("--adapter", "-a", help="Question-answering adapter, NAME or NAME:TAG.")
    ],
    top_k: Annotated[int, typer.Option(help="Number of answers to return.")] = 1,
    max_answer_tokens: Annotated[
        int, typer.Option(help="Maximum number of tokens in an answer.")
    ] = 15,
    impossible: Annotated[
        bool,
        typer.Option("--impossible", help='Allow "no answer" as an answer; its line has no text.'),
    ] = False,
    to_tokens: Annotated[
        bool,
        typer.Option(
            "--to-tokens",
            help="Let answers begin and end at tokens, also inside words; default: at words.",
        ),
    ] = False,
    context_first: Annotated[
        bool,
        typer.Option(
            "--context-first", help="Put the context before the question in the model's input."
        ),
    ] = False,
    token_types: Annotated[
        bool,
        typer.Option(
            "--token-types", help="Pass token type ids that mark the second text to the model."
        ),
    ] = False,
    max_window_tokens: Annotated[
        int | None,
        typer.Option(
            help="Maximum number of tokens in a window of question and context; a "
            "longer context is split into windows."
        ),
    ] = None,
    window_overlap_tokens: Annotated[
        int | None, typer.Option(help="Tokens that consecutive windows share.")
    ] = None,
    routing_key: RoutingKey = "",
    priority: Priority = 0,
    server: Server = DEFAULT_SERVER,
    as_json: Json = False,
) -> None:
    """Find the answer to a question in a text.

    Prints the score, position and text of each answer.
    """
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
            priority=priority,
        )
    if as_json:
        print(json.dumps(dataclasses.asdict(found)))
        return
    for each in found.results[0].answers:
        print(f"{each.score:.4f}\t{each.begin}-{each.end}\t{each.text}")
