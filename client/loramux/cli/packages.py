"""`loramux pack` and `unpack`: between the folder of PEFT and one file."""

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
        typer.Option(help="Folder of the base model; its fingerprint is noted for `verify`."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Make one file of a PEFT folder; equal input gives equal bytes.

    AdaLoRA is folded to LoRA that adds the same: P times the singular values, without masked ranks.
    """
    from loramux_adapters.weights.sources import pack_source

    target = output or Path(f"{source.resolve().name}.safetensors")
    notes = {"base": fingerprint(read_base(base))} if base else {}
    with whole_file(target) as file:
        pack_source(source, file, notes=notes)
        digest = digest_of(file)
        size = file.tell()
    if as_json:
        print(json.dumps({"path": str(target), "digest": digest, "size_bytes": size}))
    else:
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
