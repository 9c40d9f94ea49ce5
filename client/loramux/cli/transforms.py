"""`loramux convert` and `diff`: change dtype or rank of an adapter, and compare two."""

import dataclasses
import json
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated

import typer

from loramux.cli.options import Json
from loramux.cli.output import whole_file
from loramux.cli.tables import short, show
from loramux_adapters import open_package, pack_source
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
    from_bin: Annotated[
        bool,
        typer.Option(
            "--from-bin",
            help="Read a folder whose tensors are pickles, such as adapter_model.bin; a "
            "sandboxed process accepts nothing but tensors. Alone, it packs them.",
        ),
    ] = False,
    as_json: Json = False,
) -> None:
    """Change an adapter's dtype or ranks, or read a pickle.

    Prints the loss of each layer: `energy` is the fraction of the squared singular values that is
    kept, `error` the norm of the change relative to that of the update, as written.
    """
    from loramux_adapters.weights.convert import Converted
    from loramux_adapters.weights.convert import convert as converted
    from loramux_adapters.weights.pickled import without_pickles

    done: list[Converted] = []
    with ExitStack() as stack:
        target = stack.enter_context(whole_file(output))
        if from_bin:
            source = stack.enter_context(without_pickles(source))
        if from_bin and dtype is None and rank is None and energy is None:
            pack_source(source, target)
        else:
            file, package = stack.enter_context(open_package(source))
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
    rows = [
        (each.module, each.rank_before, each.rank, f"{each.energy:.6f}", f"{each.error:.2e}")
        for each in done
    ]
    if rows:
        show("module >before >rank >energy >error", rows)
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
