"""`loramux pack` and `unpack`: between the folder of PEFT and one file."""

import dataclasses
import json
from pathlib import Path
from typing import Annotated

import typer

from loramux.cli.options import Json
from loramux.cli.output import whole_file, whole_folder
from loramux_adapters import open_package
from loramux_adapters import unpack as write_folder
from loramux_adapters.base import read_base
from loramux_adapters.fingerprint import fingerprint
from loramux_adapters.package import digest_of


def pack(
    source: Annotated[
        Path,
        typer.Argument(
            help="Folder that PEFT's save_pretrained wrote; notes from its loramux.json, if any."
        ),
    ],
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="File to write; SOURCE.safetensors if left out."),
    ] = None,
    base: Annotated[
        Path | None,
        typer.Option(
            help="Folder of the base model; its fingerprint is noted for `verify`. VeRA needs it."
        ),
    ] = None,
    max_error: Annotated[
        float,
        typer.Option(
            min=0.0,
            max=1.0,
            help="Share of a layer's change that may be lost where LoHa or LoKr have a rank that "
            "is too high for LoRA.",
        ),
    ] = 0.01,
    as_json: Json = False,
) -> None:
    """Make one file of a PEFT folder; equal input gives equal bytes.

    AdaLoRA, LoHa, LoKr and VeRA are folded to LoRA that adds the same. Where that takes a rank
    above 512, the nearest of rank 512 is taken and what it lacks is told.
    """
    from loramux_adapters.weights.sources import pack_source

    target = output or Path(f"{source.resolve().name}.safetensors")
    model = read_base(base) if base else None
    notes = {"base": fingerprint(model)} if model else {}
    with whole_file(target) as file:
        folded = pack_source(source, file, notes=notes, max_error=max_error, base=model)
        digest = digest_of(file)
        size = file.tell()
    if as_json:
        layers = [dataclasses.asdict(layer) for layer in folded]
        found = {"path": str(target), "digest": digest, "size_bytes": size}
        print(json.dumps(found | ({"folded": layers} if layers else {})))
        return
    for layer in folded:
        if layer.error:
            print(f"{layer.module}: rank {layer.rank} lacks {layer.error:.2g} of the change")
    print(f"{target} {digest}")


def unpack(
    source: Annotated[Path, typer.Argument(help="Package.")],
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", "-o", help="Folder to make; SOURCE without its ending if left out."
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Make the folder that PEFT loads of a package; to pack it gives the package again."""
    target = output or Path(source.stem)
    with open_package(source) as (file, package), whole_folder(target) as folder:
        write_folder(file, package, folder)
        digest = digest_of(file)
        files = sorted(path.name for path in folder.iterdir())
    if as_json:
        print(json.dumps({"path": str(target), "digest": digest, "files": files}))
    else:
        print(f"{target} {digest}")
