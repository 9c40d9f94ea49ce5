"""`loramux pack` and `unpack`: from a PEFT folder to a package, and back."""

import dataclasses
import json
from pathlib import Path
from typing import Annotated

import typer

from loramux.cli.hub import local
from loramux.cli.options import Json
from loramux.cli.output import whole_file, whole_folder
from loramux.cli.use_notes import embedding_notes, label_notes, use_notes
from loramux_adapters import open_package, pack_source
from loramux_adapters import unpack as write_folder
from loramux_adapters.base import read_base
from loramux_adapters.embedding import Pooling
from loramux_adapters.fingerprint import fingerprint
from loramux_adapters.labels import ProblemType
from loramux_adapters.package import digest_of


def pack(
    source: Annotated[
        str,
        typer.Argument(
            help="Folder saved by PEFT or the adapters library, a kohya-style LoRA "
            "file, or hf://ORG/NAME; notes come from its loramux.json, if any."
        ),
    ],
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="Package to write; default: SOURCE.safetensors."),
    ] = None,
    base: Annotated[
        Path | None,
        typer.Option(
            help="Folder of the base model; its fingerprint is recorded for `verify`. "
            "Required for VeRA, MiSS, HRA, OFT and others, and for some kohya-style names."
        ),
    ] = None,
    chat_template: Annotated[
        str | None,
        typer.Option(
            metavar="FILE",
            help="Chat template of the adapter; default: the folder's "
            "chat_template.jinja or tokenizer_config.json; `none` for none.",
        ),
    ] = None,
    generation_config: Annotated[
        str | None,
        typer.Option(
            metavar="FILE",
            help="File with generation defaults; default: the folder's "
            "generation_config.json; `none` for none.",
        ),
    ] = None,
    default: Annotated[
        list[str] | None,
        typer.Option(
            metavar="FIELD=VALUE",
            help="Generation default, such as temperature=0.2 or stop=END; repeatable.",
        ),
    ] = None,
    labels: Annotated[
        str | None,
        typer.Option(
            metavar="A,B,C",
            help="Label names of a classification adapter, in order; default: id2label "
            "of the folder's config.json, or LABEL_0, LABEL_1, …",
        ),
    ] = None,
    problem_type: Annotated[
        ProblemType | None,
        typer.Option(
            help="How scores are computed from logits; default: as config.json says, or "
            "regression for one label and softmax for several."
        ),
    ] = None,
    pooling: Annotated[
        Pooling | None,
        typer.Option(
            help="Pooling of an embedding adapter; default: as the folder's 1_Pooling "
            "says, or last."
        ),
    ] = None,
    max_error: Annotated[
        float,
        typer.Option(
            min=0.0,
            max=1.0,
            help="LoHa, LoKr and GraLoRA: maximum fraction of a layer's update to lose if "
            "its rank is too high for LoRA.",
        ),
    ] = 0.01,
    as_json: Json = False,
) -> None:
    """Pack an adapter into one file, reproducibly.

    Equal input gives equal bytes. AdaLoRA, LoHa, LoKr, VeRA, MiSS, HRA and others are converted to
    LoRA with the same update; where that takes a rank above 512, the best approximation of rank 512
    is used and its error is printed. OFT, SHiRA and others have no low rank: the package holds the
    changed layers whole.
    """
    model = read_base(base) if base else None
    notes: dict[str, object] = {"base": fingerprint(model)} if model else {}
    notes |= use_notes(chat_template, generation_config, default or [])
    with local(source, quiet=as_json) as (path, name):
        notes |= label_notes(path, labels, problem_type)
        notes |= embedding_notes(path, pooling)
        target = output or Path(f"{name}.safetensors")
        with whole_file(target) as file:
            folded = pack_source(path, file, notes=notes, max_error=max_error, base=model)
            digest = digest_of(file)
            size = file.tell()
    if as_json:
        layers = [dataclasses.asdict(layer) for layer in folded]
        found = {"path": str(target), "digest": digest, "size_bytes": size}
        print(json.dumps(found | ({"folded": layers} if layers else {})))
        return
    for layer in folded:
        if layer.error:
            print(f"{layer.module}: rank {layer.rank} loses {layer.error:.2g} of the update")
    print(f"{target} {digest}")


def unpack(
    source: Annotated[Path, typer.Argument(help="Package to unpack.")],
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", "-o", help="Folder to create; default: SOURCE without its suffix."
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Unpack a package into a folder that PEFT loads.

    Packing the folder again gives the same package.
    """
    target = output or Path(source.stem)
    with open_package(source) as (file, package), whole_folder(target) as folder:
        write_folder(file, package, folder)
        digest = digest_of(file)
        files = sorted(path.name for path in folder.iterdir())
    if as_json:
        print(json.dumps({"path": str(target), "digest": digest, "files": files}))
    else:
        print(f"{target} {digest}")
