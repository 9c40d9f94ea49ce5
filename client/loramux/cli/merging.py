"""`loramux merge`: adapters into one, or into the weights of their base."""

import dataclasses
import json
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated, cast

import typer

from loramux.cli.options import Json
from loramux.cli.output import whole_file, whole_folder
from loramux_adapters import open_package, read_package
from loramux_adapters.package import digest_of

METHODS = (
    "Merge method, as in PEFT: cat, svd, linear, ties, dare_linear, dare_ties or magnitude_prune; "
    "the last four also with the suffix _svd."
)


def merge(
    sources: Annotated[list[Path], typer.Argument(help="Packages or PEFT folders.")],
    output: Annotated[
        Path,
        typer.Option(
            "--output", "-o", help="Package to write; with --into-base, a new model folder."
        ),
    ],
    method: Annotated[str, typer.Option("--method", help=METHODS)] = "cat",
    weights: Annotated[
        str | None, typer.Option(help="Comma-separated weights, one per adapter; default: 1 each.")
    ] = None,
    rank: Annotated[
        int | None,
        typer.Option(help="svd: rank of the result; default: the largest of the adapters."),
    ] = None,
    density: Annotated[
        float | None,
        typer.Option(help="ties, dare and magnitude_prune: fraction of values to keep."),
    ] = None,
    sign: Annotated[
        str, typer.Option(help="ties: sign election by total of values, or by frequency.")
    ] = "total",
    seed: Annotated[int, typer.Option(help="dare: random seed of the values to drop.")] = 0,
    dtype: Annotated[
        str | None,
        typer.Option(
            help="Data type of the result: float32, float16 or bfloat16; default: as they are."
        ),
    ] = None,
    into_base: Annotated[
        Path | None,
        typer.Option(
            help="Folder of the base model: write that model with the adapters merged "
            "into its weights."
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Merge adapters into one, or into their base model.

    cat sums the updates exactly, at the sum of their ranks; svd is the best approximation of that
    at a lower rank.
    """
    from loramux_adapters.base import read_base
    from loramux_adapters.weights.combine import Sign
    from loramux_adapters.weights.into_base import merge_into_base
    from loramux_adapters.weights.merge import MergeOptions
    from loramux_adapters.weights.merge import merge as merged

    try:
        numbers = tuple(map(float, weights.split(","))) if weights else ()
    except ValueError:
        raise typer.BadParameter(f"--weights {weights}: expected comma-separated numbers") from None
    if into_base and dtype:
        raise typer.BadParameter(
            "--dtype cannot be combined with --into-base, where weights keep their dtype"
        )
    options = MergeOptions(
        method=method,
        weights=numbers,
        rank=rank,
        density=density,
        sign=cast(Sign, sign),
        seed=seed,
        dtype=dtype,
    )
    with ExitStack() as stack:
        opened = [stack.enter_context(open_package(source)) for source in sources]
        if into_base is None:
            target = stack.enter_context(whole_file(output))
            merged(opened, target, options)
            written = {"path": str(output), "digest": digest_of(target)}
        else:
            base = read_base(into_base)
            folder = stack.enter_context(whole_folder(output))
            summed = stack.enter_context(tempfile.TemporaryFile(prefix="loramux-"))
            if len(opened) == 1 and options == MergeOptions():
                merge_into_base(*opened[0], base, folder)
            else:
                # No rounding of the intermediate result.
                merged(opened, summed, dataclasses.replace(options, dtype="float32"))
                merge_into_base(summed, read_package(summed, summed.tell()), base, folder)
            written = {"path": str(output)}
    print(json.dumps(written) if as_json else " ".join(written.values()))
