"""`loramux convert` and `diff`: an adapter in another form, and how far two are apart."""

import dataclasses
import json
from pathlib import Path
from typing import Annotated

import typer

from loramux.cli.options import Json
from loramux.cli.output import whole_file
from loramux.cli.tables import short, show
from loramux_adapters import open_package
from loramux_adapters.package import digest_of


def convert(
    source: Annotated[Path, typer.Argument(help="Package or PEFT folder.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Package to write.")],
    dtype: Annotated[
        str | None,
        typer.Option(
            help="Data type of the result: float32, float16 or bfloat16; default: unchanged."
        ),
    ] = None,
    rank: Annotated[
        int | None, typer.Option(help="Maximum rank; the largest singular values are kept.")
    ] = None,
    energy: Annotated[
        float | None,
        typer.Option(
            help="In place of --rank: for each layer, the lowest rank that keeps this "
            "fraction of the energy, such as 0.99."
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Change the dtype of an adapter or reduce its ranks.

    Prints the loss of each layer: `energy` is the fraction of the squared singular values that is
    kept, `error` the norm of the change relative to that of the update, as written.
    """
    from loramux_adapters.weights.convert import convert as converted

    with open_package(source) as (file, package), whole_file(output) as target:
        done = converted(file, package, target, dtype=dtype, rank=rank, energy=energy)
        digest = digest_of(target)
        size = target.tell()
    if as_json:
        modules = [dataclasses.asdict(each) for each in done]
        print(
            json.dumps(
                {"path": str(output), "digest": digest, "size_bytes": size, "modules": modules}
            )
        )
        return
    show(
        "module >before >rank >energy >error",
        (
            (each.module, each.rank_before, each.rank, f"{each.energy:.6f}", f"{each.error:.2e}")
            for each in done
        ),
    )
    print(f"{output} {digest}")


def diff(
    first: Annotated[Path, typer.Argument(help="Package or PEFT folder.")],
    second: Annotated[Path, typer.Argument(help="Package or PEFT folder to compare with.")],
    as_json: Json = False,
) -> None:
    """Compare two adapters layer by layer.

    `cosine` is that between their updates, `distance` the norm of their difference,
    whatever the ranks.
    """
    from loramux_adapters.weights.diff import diff as compared

    with open_package(first) as one, open_package(second) as other:
        found = compared(one, other)
    if as_json:
        print(json.dumps(dataclasses.asdict(found)))
        return
    for field, (before, after) in found.config.items():
        print(f"{field}: {json.dumps(before)} -> {json.dumps(after)}")
    show(
        "module >norm >norm >distance >cosine",
        (
            (each.module, *map(short, (*each.norms, each.distance, each.cosine)))
            for each in (*found.modules, found.total)
        ),
    )
