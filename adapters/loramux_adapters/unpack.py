"""Unpacking a package into a folder that PEFT loads."""

import json
from pathlib import Path
from typing import BinaryIO

from loramux_adapters.package import Package
from loramux_adapters.peft_folder import CONFIG_FILE, NOTES_FILE, TENSOR_FILE
from loramux_adapters.tensorfile import FOLDER, encode_header, tensor_reader


def unpack(file: BinaryIO, package: Package, folder: Path) -> None:
    """Write `package`, which is open as `file`, to the new `folder` as PEFT saves an adapter.

    The manifest's notes go to `loramux.json` beside PEFT's files, where packing finds them: packing
    the folder gives the same package, byte for byte. Tensor digests are omitted, as packing
    computes them, unless they are signed or the only note.

    Raises:
        PackageError: The file ends early.
        OSError: The folder exists or cannot be written.
    """
    read = tensor_reader(file, package.file.data_start)
    order = sorted(package.tensors.values(), key=lambda tensor: tensor.offset)
    folder.mkdir()
    (folder / CONFIG_FILE).write_text(json.dumps(package.peft_config, indent=2) + "\n", "utf-8")
    notes = dict(package.notes)
    if notes.keys() - {"tensors"} and "signature" not in notes:
        notes.pop("tensors", None)
    if notes:
        (folder / NOTES_FILE).write_text(json.dumps(notes, indent=2) + "\n", "utf-8")
    with (folder / TENSOR_FILE).open("xb") as output:
        output.write(encode_header(order, {"format": "pt"}, limits=FOLDER))
        for tensor in order:
            for chunk in read(tensor):
                output.write(chunk)
