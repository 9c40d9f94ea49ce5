"""Options of commands that let a server write: which adapter, and how tokens are chosen."""

from typing import Annotated, cast

import typer

from loramux.types import SamplingOptions

AdapterOption = Annotated[
    str | None,
    typer.Option("--adapter", "-a", help="Adapter, NAME or NAME:TAG; the base model if left out."),
]
RoutingKey = Annotated[
    str, typer.Option(help="Equal keys get the same version of an alias that is split.")
]
MaxTokens = Annotated[int | None, typer.Option(help="Most tokens to make.")]
Temperature = Annotated[float | None, typer.Option(help="0 takes the likeliest token.")]
TopP = Annotated[float | None, typer.Option(help="Keep this much probability.")]
TopK = Annotated[int | None, typer.Option(help="Keep so many tokens.")]
Seed = Annotated[int | None, typer.Option(help="Makes sampling reproducible.")]
Stop = Annotated[list[str] | None, typer.Option(help="Stop string; repeatable.")]


def sampling_options(**given: object) -> SamplingOptions:
    """Return those of `given` that were given: the adapter and the server know the others."""
    kept = {name: value for name, value in given.items() if value is not None and value != []}
    return cast(SamplingOptions, kept)
