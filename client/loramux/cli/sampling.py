"""Options of commands that let a server write: which adapter, and how tokens are chosen."""

import re
from pathlib import Path
from typing import Annotated, TypedDict, cast

import typer

from loramux.types import SamplingOptions

AdapterOption = Annotated[
    list[str] | None,
    typer.Option(
        "--adapter",
        "-a",
        help="Adapter, NAME or NAME:TAG; the base model if left out. Several, NAME=WEIGHT or "
        "NAME:0.5, are mixed.",
    ),
]
Scale = Annotated[
    float | None, typer.Option(help="Multiplies what the adapter changes; 0 changes nothing.")
]
CombinationOption = Annotated[
    str | None,
    typer.Option("--combination", help="How adapters are mixed: cat (default) or linear."),
]
RoutingKey = Annotated[
    str, typer.Option(help="Equal keys get the same version of an alias that is split.")
]
MaxTokens = Annotated[int | None, typer.Option(help="Most tokens to make.")]
Temperature = Annotated[float | None, typer.Option(help="0 takes the likeliest token.")]
TopP = Annotated[float | None, typer.Option(help="Keep this much probability.")]
TopK = Annotated[int | None, typer.Option(help="Keep so many tokens.")]
Beams = Annotated[
    int | None, typer.Option("--beams", help="Beams of a beam search, from which the best comes.")
]
LengthPenalty = Annotated[
    float | None, typer.Option(help="With --beams: above 0 it favours long texts; 1 if left out.")
]
EarlyStopping = Annotated[
    bool | None,
    typer.Option("--early-stopping", help="With --beams: end with so many texts that have ended."),
]
DecoderPrompt = Annotated[
    str | None,
    typer.Option(help="What the text begins with, where the base model writes another."),
]
ParseSpecial = Annotated[
    bool,
    typer.Option("--parse-special-tokens", help="Let text such as </s> be a control token."),
]
Seed = Annotated[int | None, typer.Option(help="Makes sampling reproducible.")]
Stop = Annotated[list[str] | None, typer.Option(help="Stop string; repeatable.")]
JsonSchema = Annotated[
    str | None,
    typer.Option(help="File with a JSON schema that the text meets, or the schema itself."),
]
Regex = Annotated[
    str | None, typer.Option(help="Regular expression that matches the text as a whole.")
]
Choice = Annotated[
    list[str] | None, typer.Option(help="Text that is to come, of several; repeatable.")
]


_WEIGHTED = re.compile(r"(.+)(?:=(.*)|:([+-]?\d*\.\d*))")
"""A reference and its weight. What follows a colon is a weight if it has a decimal point, and else
a tag."""


class AdapterOptions(TypedDict):
    """Arguments of the client that say who answers."""

    adapter: str | None
    adapters: list[tuple[str, float]]
    scale: float | None
    combination: str | None


def adapter_options(
    given: list[str] | None, scale: float | None, combination: str | None
) -> AdapterOptions:
    """Return the adapter, or those of a mix with their weights, that the command line names."""
    pairs = [_weighted(text) for text in given or ()]
    single = pairs[0][0] if len(pairs) == 1 and pairs[0][1] is None else None
    mix = [(name, 1.0 if weight is None else weight) for name, weight in pairs]
    return {
        "adapter": single,
        "adapters": [] if single else mix,
        "scale": scale,
        "combination": combination,
    }


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


def sampling_options(json_schema: str | None, **given: object) -> SamplingOptions:
    """Return those of `given` that were given: the adapter and the server know the others.

    `json_schema` is one, or the file that holds it.
    """
    if json_schema is not None and not json_schema.lstrip().startswith("{"):
        try:
            json_schema = Path(json_schema).read_text(encoding="utf-8")
        except (OSError, ValueError) as error:
            raise typer.BadParameter(
                f"{json_schema!r} is no JSON object, nor a file that can be read: {error}",
                param_hint="--json-schema",
            ) from None
    given["json_schema"] = json_schema
    kept = {name: value for name, value in given.items() if value is not None and value != []}
    return cast(SamplingOptions, kept)
