"""`loramux pack` and `inspect`: adapters as files, without a server."""

import json
import os
from collections import defaultdict
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from loramux.cli.options import Json
from loramux_adapters import Package, read_package
from loramux_adapters import pack as write_package
from loramux_adapters.package import digest_of, is_peft_folder


def pack(
    source: Annotated[Path, typer.Argument(help="Folder that PEFT's save_pretrained wrote.")],
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="File to write; SOURCE.safetensors if left out."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Make one file of a PEFT folder; equal input gives equal bytes."""
    target = output or Path(f"{source.resolve().name}.safetensors")
    if target.exists() and not target.is_file():
        raise FileExistsError(f"{target} is there and is no file that can be replaced")
    # Written aside and renamed, so that the target is whole or absent.
    partial = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        with partial.open("x+b") as file:
            write_package(source, file)
            digest = digest_of(file)
            size = file.tell()
        partial.replace(target)
    finally:
        partial.unlink(missing_ok=True)
    if as_json:
        print(json.dumps({"path": str(target), "digest": digest, "size_bytes": size}))
    else:
        print(f"{target} {digest}")


def inspect(
    path: Annotated[Path, typer.Argument(help="Package, or PEFT folder.")],
    as_json: Json = False,
) -> None:
    """Show what an adapter holds: its layers, ranks and scales, and whether it can be served."""
    digest, size, package = _open(path)
    rows = _by_target(package)
    if as_json:
        print(
            json.dumps(
                {
                    "digest": digest,
                    "size_bytes": size,
                    "base_model": package.config.base_model,
                    "rank": package.rank,
                    "targets": rows,
                    "peft_config": package.peft_config,
                }
            )
        )
        return
    print(f"digest  {digest}")
    print(f"size    {size / 1e6:.2f} MB")
    print(f"base    {package.config.base_model or '(not recorded)'}")
    table = Table(box=None, pad_edge=False)
    for heading in ("target", "layers", "rank", "scale", "in", "out", "dtype"):
        table.add_column(heading, justify="left" if heading in ("target", "dtype") else "right")
    for row in rows:
        table.add_row(*(str(value) for value in row.values()))
    Console().print(table)


def _open(path: Path) -> tuple[str, int, Package]:
    if not is_peft_folder(path):
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            return digest_of(file), size, read_package(file, size)
    import tempfile

    with tempfile.TemporaryFile() as file:
        write_package(path, file)
        size = file.tell()
        return digest_of(file), size, read_package(file, size)


def _by_target(package: Package) -> list[dict[str, object]]:
    """Return a row for each kind of layer; a range where its layers differ."""
    modules = defaultdict(list)
    for module in package.modules:
        modules[module.module.rpartition(".")[2]].append(module)
    return [
        {
            "target": target,
            "layers": len(found),
            "rank": _span([module.rank for module in found]),
            "scale": _span([round(module.scale, 6) for module in found]),
            "in_features": _span([module.in_features for module in found]),
            "out_features": _span([module.out_features for module in found]),
            "dtype": "/".join(sorted({module.a.dtype for module in found})),
        }
        for target, found in sorted(modules.items())
    ]


def _span(values: list[float] | list[int]) -> str | float:
    low, high = min(values), max(values)
    return low if low == high else f"{low}..{high}"
