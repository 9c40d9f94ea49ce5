"""`loramux pack` and `unpack`: between the folder of PEFT and one file."""

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
            help="Folder that PEFT or the adapters library saved, a kohya-style LoRA file, or "
            "hf://ORG/NAME; notes from a loramux.json, if there is one."
        ),
    ],
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="File to write; SOURCE.safetensors if left out."),
    ] = None,
    base: Annotated[
        Path | None,
        typer.Option(
            help="Folder of the base model; its fingerprint is noted for `verify`. VeRA needs it, "
            "and kohya-style names can."
        ),
    ] = None,
    chat_template: Annotated[
        str | None,
        typer.Option(
            metavar="FILE",
            help="Chat template of the adapter; by default that of the folder's "
            "chat_template.jinja or tokenizer_config.json; none for none.",
        ),
    ] = None,
    generation_config: Annotated[
        str | None,
        typer.Option(
            metavar="FILE",
            help="Where its generation defaults come from; by default the folder's "
            "generation_config.json; none for nowhere.",
        ),
    ] = None,
    default: Annotated[
        list[str] | None,
        typer.Option(
            metavar="FIELD=VALUE",
            help="A generation default, such as temperature=0.2 or stop=END; repeatable.",
        ),
    ] = None,
    labels: Annotated[
        str | None,
        typer.Option(
            metavar="A,B,C",
            help="Names of the labels of an adapter that classifies, in order; by default id2label "
            "of the folder's config.json, or LABEL_0, LABEL_1, …",
        ),
    ] = None,
    problem_type: Annotated[
        ProblemType | None,
        typer.Option(
            help="How its scores come of logits; by default what config.json says, or regression "
            "for one label and softmax for several."
        ),
    ] = None,
    pooling: Annotated[
        Pooling | None,
        typer.Option(
            help="How it makes one vector of a text; by default what the folder's 1_Pooling says, "
            "or last."
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
    """Make one file of an adapter; equal input gives equal bytes.

    AdaLoRA, LoHa, LoKr and VeRA are folded to LoRA that adds the same. Where that takes a rank
    above 512, the nearest of rank 512 is taken and what it lacks is told.
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
