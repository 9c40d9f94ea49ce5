"""Makes a package of a PEFT folder, or of tensors and a config; equal input gives equal bytes.

Memory stays bounded: tensor bytes are copied, never held.
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
from loramux_adapters.labels import labels_beside
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
    """What a package is written to."""

    def write(self, piece: bytes, /) -> object:
        """Append `piece`."""


def pack(source: Path, output: Output, *, notes: Mapping[str, object | None] | None = None) -> None:
    """Write the PEFT folder `source` to `output` as a package, with notes as `read_notes` has them.

    Raises:
        PackageError: The folder is not an adapter that can be served.
    """
    config = read_config(source)
    kind_of(config).check(config)  # before the tensors: the clearer message comes first
    with open_tensors(source) as file:
        header = read_tensor_header(file, os.fstat(file.fileno()).st_size, limits=FOLDER)
        read = tensor_reader(file, header.data_start)
        tensors = unstacked(header.tensors)
        _, contents = check_contents(config, tensors)
        noted = notes_beside(source, contents, notes)
        if "tensors" in noted:
            form = stored(config, tensors, noted)
            digests = cast(dict[str, object], noted["tensors"])
            check_digests(digests, form.tensors, form.reader(read))
        write_package(config, tensors, read, output, notes=noted)


def notes_beside(
    source: Path, contents: Contents, notes: Mapping[str, object | None] | None
) -> Mapping[str, object]:
    """Return the notes of an adapter in the folder `source` that does `contents`.

    They are those of `read_notes`, the tokens that it brings and the labels of its head.

    Raises:
        PackageError: They are malformed.
    """
    # What has a head makes no vectors, whatever lies beside it.
    noted = read_notes(source, notes, but=("embedding",) if contents.head else ())
    given = {**noted, **(notes or {})}
    if "added_tokens" not in given and (added := added_tokens_of(source, contents)):
        noted = {**noted, "added_tokens": added}
    if "classification" not in given and contents.head and contents.head.task.classifies:
        told = labels_beside(source)
        noted = {**noted, "classification": told} if told else noted
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
    """Write a package of `tensors`, none of them stacks, whose bytes `read` yields, to `output`.

    With any notes, the digests of the tensors are noted, too: they say what the notes are of. Those
    in the folder `source`, if one is given, come beside `notes`.

    Raises:
        PackageError: Config and tensors are not an adapter that can be served, or too many even in
            stacks.
    """
    _, contents = check_contents(peft_config, tensors)
    notes = notes_beside(source, contents, notes) if source else notes
    check_use(contents, notes)
    form = stored(peft_config, tensors, notes)
    read = form.reader(read)
    if notes and "tensors" not in notes:
        notes = {**notes, "tensors": tensor_digests(form.tensors, read)}
    output.write(_header(peft_config, form, notes))
    for tensor in _in_order(form):
        for piece in read(tensor):
            output.write(piece)


def stored(
    peft_config: Mapping[str, object],
    tensors: Mapping[str, TensorInfo],
    notes: Mapping[str, object],
) -> Stored:
    """Return how a package of `tensors` stores them: as they are, where its header has room.

    So what was packed before there were stacks has the digest that it had. A signature counts by
    its length, and digests are those to come.
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
    # Wide items first, so that every tensor is aligned; then by name.
    return sorted(form.tensors.values(), key=lambda t: (-ITEM_BYTES[t.dtype], t.name))


def _end_to_end(tensors: Iterable[TensorInfo]) -> Iterator[TensorInfo]:
    end = 0
    for tensor in tensors:
        yield replace(tensor, offset=end)
        end += tensor.num_bytes
