"""`loramux sign`: sign a package, or make a key pair."""

import json
from pathlib import Path
from typing import Annotated

import typer

from loramux.cli.options import Json, needs
from loramux.cli.output import whole_file
from loramux_adapters import open_package
from loramux_adapters.package import digest_of


def sign(
    source: Annotated[
        Path | None, typer.Argument(help="Package or PEFT folder to sign; none with --new-key.")
    ] = None,
    key: Annotated[
        Path | None, typer.Option("--key", "-k", help="PEM file of the private key.")
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            help="Package to write; default: SOURCE, or SOURCE.safetensors for a folder.",
        ),
    ] = None,
    new_key: Annotated[
        Path | None,
        typer.Option(
            "--new-key",
            help="Generate a key pair instead: the private key in this file, the public "
            "key beside it as .pub.",
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Sign a package with an Ed25519 key.

    The signature is part of its manifest, so its digest changes. Check it with
    `loramux verify --key KEY.pub`.
    """
    with needs("cryptography", extra="sign", what="sign"):
        from loramux_adapters import signing
    if new_key is not None:
        if source or key or output:
            raise typer.BadParameter(
                "--new-key cannot be combined with a package, --key or --output"
            )
        made = {"path": str(new_key), "public_key": signing.new_key(new_key)}
        print(json.dumps(made) if as_json else " ".join(made.values()))
        return
    if source is None or key is None:
        raise typer.BadParameter("expected a package and --key, or --new-key")
    beside = Path(f"{source.resolve().name}.safetensors") if source.is_dir() else source
    target = output or beside
    with open_package(source) as (file, package), whole_file(target) as signed:
        public = signing.sign(file, package, key, signed)
        digest = digest_of(signed)
    if as_json:
        print(json.dumps({"path": str(target), "digest": digest, "public_key": public}))
    else:
        print(f"{target} {digest}")
