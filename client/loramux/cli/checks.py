"""`loramux verify` and `lint`: integrity of an adapter, and likely mistakes in it."""

import dataclasses
import json
from pathlib import Path
from typing import Annotated

import typer

from loramux.cli.options import Json, needs
from loramux.cli.tables import show
from loramux_adapters import open_package


def verify(
    path: Annotated[Path, typer.Argument(help="Package or PEFT folder.")],
    digest: Annotated[
        str | None, typer.Option(metavar="sha256:HEX", help="Digest that the package must have.")
    ] = None,
    base: Annotated[
        Path | None,
        typer.Option(
            help="Folder of the base model to check the adapter against; its weights are not read."
        ),
    ] = None,
    key: Annotated[
        Path | None, typer.Option("--key", "-k", help="Public key to verify the signature with.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Check the integrity of a package, its base and signature.

    Reads every tensor: structure, digests, and no NaN or infinity.
    """
    from loramux_adapters.base import read_base
    from loramux_adapters.weights.verify import verify as checked

    with open_package(path) as (file, package):
        done = {
            each.check: each.found
            for each in checked(
                file, package, digest=digest, base=read_base(base) if base else None
            )
        }
        if key:
            with needs("cryptography", extra="sign", what="verify --key"):
                from loramux_adapters.signing import check_signature, read_public_keys
            done["signature"] = f"by {check_signature(file, package, read_public_keys([key]))}"
        elif "signature" in package.notes:
            done["signature"] = "not checked; use --key"
    if as_json:
        print(json.dumps(done))
    else:
        show("check found", done.items())


def lint(
    path: Annotated[Path, typer.Argument(help="Package or PEFT folder.")],
    strict: Annotated[
        bool, typer.Option("--strict", help="Exit with 1 for warnings and notes, too.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Find likely mistakes in an adapter.

    Looks for dead layers, NaN, unusual scales and norms, and wasted ranks and bytes.

    Exits with 1 if there is an error, or with --strict any finding. The codes of findings are
    not-finite, dead-adapter (errors); dead-module, scale-high, scale-low, rank-without-rslora,
    norm-outlier, base-unknown (warnings); mixed-dtypes, rank-unused, wide-dtype (notes).
    """
    from loramux_adapters.weights.lint import lint as linted

    with open_package(path) as (file, package):
        findings = linted(file, package)
    if as_json:
        print(json.dumps([{"level": each.level} | dataclasses.asdict(each) for each in findings]))
    elif findings:
        show(
            "level code module message",
            ((each.level, each.code, each.module, each.message) for each in findings),
        )
    else:
        print("no findings")
    if any(strict or each.level == "error" for each in findings):
        raise typer.Exit(1)
