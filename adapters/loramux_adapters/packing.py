"""Write packages from PEFT folders, or from tensors and a config; equal input gives equal bytes.

Memory is bounded: tensor data is streamed.
"""

import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Protocol, cast

from loramux_adapters.added_tokens import added_tokens_of
from loramux_adapters.contents import Contents
from loramux_adapters.digests import UNKNOWN_DIGEST, check_digests, tensor_digests
from loramux_adapters.errors import PackageError
from loramux_adapters.kinds import kind_of
from loramux_adapters.labels import labels_from_folder
from loramux_adapters.manifest import MANIFEST_KEY, manifest_text
from loramux_adapters.package import check_contents, check_use
from loramux_adapters.peft_folder import open_tensors, read_config, read_notes
from loramux_adapters.stacks import Stored, stacked, unstacked
from loramux_adapters.tensorfile import (
    FOLDER,
    ITEM_BYTES,
    ReadTensor,
    TensorInfo,
    encode_header,
    tensor_reader,
)
from loramux_adapters.tensorfile import read_header as read_tensor_header


class Output(Protocol):
    """A stream that a package is written to."""

    def write(self, chunk: bytes, /) -> object:
        """Append `chunk`."""


def pack(source: Path, output: Output, *, notes: Mapping[str, object | None] | None = None) -> None:
    """Write the PEFT folder `source` to `output` as a package; for `notes` see `read_notes`.

    Raises:
        PackageError: The folder is not an adapter that can be served.
    """
    config = read_config(source)
    kind_of(config).check(config)  # checked before the tensors, as its messages are clearer
    with open_tensors(source) as file:
        header = read_tensor_header(file, os.fstat(file.fileno()).st_size, limits=FOLDER)
        read = tensor_reader(file, header.data_start)
        tensors = unstacked(header.tensors)
        _, contents = check_contents(config, tensors)
        noted = notes_from_folder(source, contents, notes)
        if "tensors" in noted:
            form = stored(config, tensors, noted)
            digests = cast(dict[str, object], noted["tensors"])
            check_digests(digests, form.tensors, form.reader(read))
        write_package(config, tensors, read, output, notes=noted)


def notes_from_folder(
    source: Path, contents: Contents, notes: Mapping[str, object | None] | None
) -> Mapping[str, object]:
    """Return the notes of the adapter with `contents` in the folder `source`.

    These are the notes of `read_notes`, its added tokens and its labels.

    Raises:
        PackageError: They are malformed.
    """
    # An adapter with a head makes no embeddings, whatever files lie beside it.
    noted = read_notes(source, notes, but=("embedding",) if contents.head else ())
    given = {**noted, **(notes or {})}
    if "added_tokens" not in given and (added := added_tokens_of(source, contents)):
        noted = {**noted, "added_tokens": added}
    if "classification" not in given and contents.head and contents.head.task.classifies:
        labels = labels_from_folder(source)
        noted = {**noted, "classification": labels} if labels else noted
    return noted


def write_package(
    peft_config: Mapping[str, object],
    tensors: Mapping[str, TensorInfo],
    read: ReadTensor,
    output: Output,
    *,
    notes: Mapping[str, object],
    source: Path | None = None,
) -> None:
    """Write a package of `tensors`, which are not stacked, to `output`; `read` yields their bytes.

    If there are any notes, the digests of the tensors are added, so that notes belong to certain
    tensors. Notes found in the folder `source`, if given, are added to `notes`.

    Raises:
        PackageError: Config and tensors are not an adapter that can be served, or there are too
            many tensors even when stacked.
    """
    _, contents = check_contents(peft_config, tensors)
    notes = notes_from_folder(source, contents, notes) if source else notes
    check_use(contents, notes)
    form = stored(peft_config, tensors, notes)
    read = form.reader(read)
    if notes and "tensors" not in notes:
        notes = {**notes, "tensors": tensor_digests(form.tensors, read)}
    output.write(_header(peft_config, form, notes))
    for tensor in _in_order(form):
        for chunk in read(tensor):
            output.write(chunk)


def stored(
    peft_config: Mapping[str, object],
    tensors: Mapping[str, TensorInfo],
    notes: Mapping[str, object],
) -> Stored:
    """Return how a package stores `tensors`: unchanged if its header has room, else stacked.

    Thus packages from before stacks existed keep their digest. The size of the header includes a
    placeholder for the digest of each tensor.
    """
    plain = Stored(dict(tensors))
    noted = {**notes, "tensors": dict.fromkeys(tensors, UNKNOWN_DIGEST)} if notes else notes
    try:
        _header(peft_config, plain, noted)
    except PackageError:
        return stacked(tensors)
    return plain


def _header(peft_config: Mapping[str, object], form: Stored, notes: Mapping[str, object]) -> bytes:
    metadata = {"format": "pt", MANIFEST_KEY: manifest_text(peft_config, notes)}
    return encode_header(_end_to_end(_in_order(form)), metadata)


def _in_order(form: Stored) -> list[TensorInfo]:
    # Wide dtypes first, so that every tensor is aligned; then by name.
    return sorted(form.tensors.values(), key=lambda t: (-ITEM_BYTES[t.dtype], t.name))


def _end_to_end(tensors: Iterable[TensorInfo]) -> Iterator[TensorInfo]:
    end = 0
    for tensor in tensors:
        yield replace(tensor, offset=end)
        end += tensor.num_bytes
