"""Options of commands that generate text: adapter and sampling parameters."""

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
        help="Adapter, NAME or NAME:TAG; default: the base model alone. Several, as "
        "NAME=WEIGHT or NAME:0.5, are mixed.",
    ),
]
Scale = Annotated[
    float | None, typer.Option(help="Scale the adapter's update by this factor; 0 disables it.")
]
CombinationOption = Annotated[
    str | None,
    typer.Option("--combination", help="How to mix adapters: cat (default) or linear."),
]
RoutingKey = Annotated[
    str,
    typer.Option(
        help="Requests with the same key get the same version of an alias that splits traffic."
    ),
]
Priority = Annotated[
    int, typer.Option(help="Order among the requests of your tenant; lower goes first.")
]
MaxTokens = Annotated[int | None, typer.Option(help="Maximum number of tokens to generate.")]
Temperature = Annotated[
    float | None, typer.Option(help="Sampling temperature; 0 is greedy decoding.")
]
TopP = Annotated[
    float | None,
    typer.Option(
        help="Nucleus sampling: sample from the likeliest tokens with this total probability."
    ),
]
TopK = Annotated[int | None, typer.Option(help="Sample from this many likeliest tokens.")]
Beams = Annotated[int | None, typer.Option("--beams", help="Beam search with this many beams.")]
LengthPenalty = Annotated[
    float | None,
    typer.Option(
        help="With --beams: exponent of the length in scores; above 0 favours long "
        "texts. Default: 1."
    ),
]
EarlyStopping = Annotated[
    bool | None,
    typer.Option(
        "--early-stopping", help="With --beams: stop as soon as that many candidates are finished."
    ),
]
DecoderPrompt = Annotated[
    str | None,
    typer.Option(help="Text that the output begins with, for encoder-decoder models."),
]
ParseSpecial = Annotated[
    bool,
    typer.Option("--parse-special-tokens", help="Parse text such as </s> as special tokens."),
]
Seed = Annotated[int | None, typer.Option(help="Random seed, for reproducible sampling.")]
Stop = Annotated[list[str] | None, typer.Option(help="Stop generating at this string; repeatable.")]
JsonSchema = Annotated[
    str | None,
    typer.Option(help="JSON schema that the output must match: a file or the schema itself."),
]
Regex = Annotated[
    str | None, typer.Option(help="Regular expression that the whole output must match.")
]
Choice = Annotated[
    list[str] | None,
    typer.Option(help="Restrict the output to this text, or one of several; repeatable."),
]


_WEIGHTED = re.compile(r"(.+)(?:=(.*)|:([+-]?\d*\.\d*))")
"""A reference with a weight. A suffix after a colon is a weight if it has a decimal point, else a
tag."""


class AdapterOptions(TypedDict):
    """Arguments of the client that select the adapter or the mix."""

    adapter: str | None
    adapters: list[tuple[str, float]]
    scale: float | None
    combination: str | None


def adapter_options(
    given: list[str] | None, scale: float | None, combination: str | None
) -> AdapterOptions:
    """Return the adapter, or the mix with its weights, that the command line specifies."""
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
    """Return the options that are set; the adapter and the server have defaults for the others.

    `json_schema` is a schema, or the path of a file with one.
    """
    if json_schema is not None and not json_schema.lstrip().startswith("{"):
        try:
            json_schema = Path(json_schema).read_text(encoding="utf-8")
        except (OSError, ValueError) as error:
            raise typer.BadParameter(
                f"{json_schema!r} is neither a JSON object nor a readable file: {error}",
                param_hint="--json-schema",
            ) from None
    given["json_schema"] = json_schema
    kept = {name: value for name, value in given.items() if value is not None and value != []}
    return cast(SamplingOptions, kept)
