"""An adapter package: one safetensors file that says everything about itself.

The tensors have the names that PEFT gave them, so any safetensors reader can open the file. Where
they would be too many, those of experts lie in stacks; see `loramux_adapters.stacks`. The
`loramux.manifest` entry of its metadata is a JSON document with the PEFT config as it was. Equal
input gives equal bytes, and the SHA-256 of those bytes is the adapter's identity.
"""

import hashlib
import os
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO, Protocol, cast

from loramux_adapters.added_tokens import added_tokens_of
from loramux_adapters.base_names import FEATURES, named_for
from loramux_adapters.contents import Contents, Edit, VirtualTokens
from loramux_adapters.digests import (
    UNKNOWN_DIGEST,
    ReadTensor,
    check_digests,
    tensor_digests,
)
from loramux_adapters.embedding import Embedding, embedding_of
from loramux_adapters.errors import PackageError
from loramux_adapters.experts import ExpertsShape
from loramux_adapters.head import Head, Task
from loramux_adapters.kinds import AdapterConfig, kind_of, read_contents
from loramux_adapters.labels import Labels, labels_beside, labels_of
from loramux_adapters.lora import LoraModule
from loramux_adapters.manifest import (
    MANIFEST_KEY,
    compact_json,
    manifest_text,
    parse_manifest,
)
from loramux_adapters.peft_folder import (
    CONFIG_FILE,
    MAX_CONFIG_BYTES,
    open_tensors,
    read_config,
    read_notes,
)
from loramux_adapters.stacks import Stored, stacked, unstacked
from loramux_adapters.tensorfile import (
    FOLDER,
    ITEM_BYTES,
    TensorFile,
    TensorInfo,
    encode_header,
)
from loramux_adapters.tensorfile import read_header as read_tensor_header

_COPY_BYTES = 1 << 20


class Output(Protocol):
    """What a package is written to."""

    def write(self, piece: bytes, /) -> object:
        """Append `piece`."""


@dataclass(frozen=True, slots=True)
class Package:
    """A checked package; its tensor bytes stay in the file."""

    config: AdapterConfig
    peft_config: Mapping[str, object]
    """`adapter_config.json` as PEFT wrote it."""
    notes: Mapping[str, object]
    """What else the manifest says; `loramux_adapters.manifest.NOTES` names all."""
    contents: Contents
    file: TensorFile
    """What lies in the file, with stacks as they are."""

    @property
    def tensors(self) -> dict[str, TensorInfo]:
        """The tensors that PEFT saved, and where in the file each lies, be it in a stack."""
        return unstacked(self.file.tensors)

    @property
    def modules(self) -> list[LoraModule]:
        """The low-rank changes."""
        return self.contents.modules

    @property
    def edits(self) -> list[Edit]:
        """What else is done to linear layers."""
        return self.contents.edits

    @property
    def virtual(self) -> VirtualTokens | None:
        """What stands before every prompt."""
        return self.contents.virtual

    @property
    def head(self) -> Head | None:
        """What it has in place of the layer of logits; None where it continues text."""
        return self.contents.head

    @property
    def labels(self) -> Labels | None:
        """What the outputs of its head mean; None where there are no labels."""
        head = self.head
        return labels_of(head, self.notes) if head and head.task.classifies else None

    def named_for(
        self, names: Collection[str], experts: Mapping[str, ExpertsShape] | None = None
    ) -> "Package":
        """Return it with its modules under the names that they have in a base; see `named_for`."""
        return replace(self, contents=named_for(self.contents, names, experts))

    @property
    def task(self) -> str:
        """What it does instead of continuing text, as `task_type` calls that; empty if nothing."""
        if self.head:
            return str(self.head.task)
        return FEATURES if self.contents.task == FEATURES else ""

    @property
    def embedding(self) -> Embedding:
        """How it makes one vector of a text, where it is asked for one."""
        return embedding_of(self.notes)

    @property
    def method(self) -> str:
        """What trained it, as PEFT calls that, in lower case."""
        return str(self.peft_config["peft_type"]).lower()

    @property
    def rank(self) -> int:
        """The largest rank of any module; 0 where there is no low-rank change."""
        return max((change.rank for change in self.contents.low_rank), default=0)

    @property
    def target_modules(self) -> list[str]:
        """The last parts of the names of the adapted layers, sorted."""
        changed = [
            *self.contents.changed_modules,
            *(each.module for each in self.contents.bottlenecks),
        ]
        return sorted({module.rpartition(".")[2] for module in changed})


def read_package(file: BinaryIO, size: int) -> Package:
    """Return the package in `file`, which is `size` bytes long.

    Raises:
        PackageError: The file is not a package that can be served.
    """
    header = read_tensor_header(file, size)
    if MANIFEST_KEY not in header.metadata:
        raise PackageError(
            f"the file has no {MANIFEST_KEY!r} metadata: it is a bare tensor file. Upload or pack "
            f"the PEFT folder that holds it together with {CONFIG_FILE}",
            "INVALID_ADAPTER_CONFIG",
        )
    manifest = parse_manifest(header.metadata[MANIFEST_KEY])
    checked, contents = _read(manifest.peft_config, unstacked(header.tensors))
    _check_use(contents, manifest.notes)
    return Package(checked, manifest.peft_config, manifest.notes, contents, header)


def pack(source: Path, output: Output, *, notes: Mapping[str, object | None] | None = None) -> None:
    """Write the PEFT folder `source` to `output` as a package, with notes as `read_notes` has them.

    Memory stays bounded: tensor bytes are copied, never held.

    Raises:
        PackageError: The folder is not an adapter that can be served.
    """
    config = read_config(source)
    kind_of(config).check(config)  # before the tensors: the clearer message comes first
    # What has a head makes no vectors, whatever lies beside it.
    has_head = config.get("task_type") in set(Task)
    noted = read_notes(source, notes, but=("embedding",) if has_head else ())
    with open_tensors(source) as file:
        header = read_tensor_header(file, os.fstat(file.fileno()).st_size, limits=FOLDER)
        read = tensor_reader(file, header.data_start)
        tensors = unstacked(header.tensors)
        if "tensors" in noted:
            form = stored(config, tensors, noted)
            digests = cast(dict[str, object], noted["tensors"])
            check_digests(digests, form.tensors, form.reader(read))
        _, contents = _read(config, tensors)
        given = {**noted, **(notes or {})}
        if "added_tokens" not in given and (added := added_tokens_of(source, contents)):
            noted = {**noted, "added_tokens": added}
        if "classification" not in given and _classifies(contents):
            told = labels_beside(source)
            noted = {**noted, "classification": told} if told else noted
        write_package(config, tensors, read, output, notes=noted)


def write_package(
    peft_config: Mapping[str, object],
    tensors: Mapping[str, TensorInfo],
    read: ReadTensor,
    output: Output,
    *,
    notes: Mapping[str, object],
) -> None:
    """Write a package of `tensors`, none of them stacks, whose bytes `read` yields, to `output`.

    With any notes, the digests of the tensors are noted, too: they say what the notes are of.

    Raises:
        PackageError: Config and tensors are not an adapter that can be served, or too many even in
            stacks.
    """
    _, contents = _read(peft_config, tensors)
    _check_use(contents, notes)
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


def tensor_reader(file: BinaryIO, data_start: int) -> ReadTensor:
    """Return what reads the tensors of `file`, whose data begin at `data_start`."""

    def read(tensor: TensorInfo) -> Iterator[bytes]:
        file.seek(data_start + tensor.offset)
        left = tensor.num_bytes
        while left:
            piece = file.read(min(left, _COPY_BYTES))
            if not piece:
                raise PackageError(
                    f"the file ended inside tensor {tensor.name}: it changed meanwhile"
                )
            yield piece
            left -= len(piece)

    return read


def digest_of(file: BinaryIO) -> str:
    """Return the identity of the package in `file`: `sha256:` and 64 hexadecimal digits."""
    sha256 = hashlib.sha256()
    file.seek(0)
    while piece := file.read(_COPY_BYTES):
        sha256.update(piece)
    return f"sha256:{sha256.hexdigest()}"


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


def _check_use(contents: Contents, notes: Mapping[str, object]) -> None:
    if contents.head and _classifies(contents):
        labels_of(contents.head, notes)
    elif "classification" in notes:
        raise PackageError(
            "classification is noted of an adapter without a head of labels: its task_type is "
            "neither SEQ_CLS nor TOKEN_CLS",
            "INVALID_ADAPTER_CONFIG",
        )
    if contents.head and "embedding" in notes:
        raise PackageError(
            f"embedding is noted of an adapter with a head (task_type {contents.head.task})",
            "INVALID_ADAPTER_CONFIG",
        )


def _classifies(contents: Contents) -> bool:
    return contents.head is not None and contents.head.task.classifies


def _read(
    config: Mapping[str, object], tensors: Mapping[str, TensorInfo]
) -> tuple[AdapterConfig, Contents]:
    # The compact form is what a package holds, so what can be packed can be read.
    if len(compact_json(config)) > MAX_CONFIG_BYTES:
        raise PackageError(
            f"the config is above {MAX_CONFIG_BYTES} bytes", "INVALID_ADAPTER_CONFIG"
        )
    return read_contents(config, tensors)
