"""An adapter package: one self-describing safetensors file.

Tensors have the names that PEFT gave them, so any safetensors reader can open the file. Where there
would be too many, those of experts are stacked; see `loramux_adapters.stacks`. The metadata entry
`loramux.manifest` is a JSON document with the unchanged PEFT config. Equal input gives equal bytes
(`loramux_adapters.packing`), and the SHA-256 of those bytes is the adapter's identity.
"""

import hashlib
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from typing import BinaryIO

from loramux_adapters.base_names import named_for
from loramux_adapters.contents import Contents, Edit, VirtualTokens
from loramux_adapters.embedding import Embedding, embedding_of
from loramux_adapters.errors import PackageError
from loramux_adapters.experts import ExpertsShape
from loramux_adapters.head import FEATURES, Head, HeadShape
from loramux_adapters.kinds import AdapterConfig, read_contents
from loramux_adapters.labels import Labels, labels_of
from loramux_adapters.lora import LoraModule
from loramux_adapters.manifest import MANIFEST_KEY, compact_json, parse_manifest
from loramux_adapters.peft_folder import CONFIG_FILE, MAX_CONFIG_BYTES
from loramux_adapters.stacks import unstacked
from loramux_adapters.tensorfile import TensorFile, TensorInfo
from loramux_adapters.tensorfile import read_header as read_tensor_header

_COPY_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class Package:
    """A validated package; the tensor data stays in the file."""

    config: AdapterConfig
    peft_config: Mapping[str, object]
    """`adapter_config.json` as PEFT wrote it."""
    notes: Mapping[str, object]
    """The other entries of the manifest; `loramux_adapters.manifest.NOTES` lists all."""
    contents: Contents
    file: TensorFile
    """Header of the file, with stacks as they are."""

    @property
    def tensors(self) -> dict[str, TensorInfo]:
        """The tensors that PEFT saved, with their positions in the file, also inside stacks."""
        return unstacked(self.file.tensors)

    @property
    def modules(self) -> list[LoraModule]:
        """Low-rank updates of layers."""
        return self.contents.modules

    @property
    def edits(self) -> list[Edit]:
        """Other changes of modules."""
        return self.contents.edits

    @property
    def virtual(self) -> VirtualTokens | None:
        """The soft prompt or KV prefix that stands before every prompt."""
        return self.contents.virtual

    @property
    def head(self) -> Head | None:
        """The head that replaces the output layer; None if the adapter generates text."""
        return self.contents.head

    @property
    def labels(self) -> Labels | None:
        """What the outputs of its head mean; None if they are not labels."""
        head = self.head
        return labels_of(head, self.notes) if head and head.task.classifies else None

    def named_for(
        self,
        names: Collection[str],
        experts: Mapping[str, ExpertsShape] | None = None,
        vision_modules: Collection[str] = (),
        heads: Mapping[str, HeadShape] | None = None,
    ) -> "Package":
        """Return it with modules renamed to the names that a base has; see `base_names`."""
        return replace(
            self, contents=named_for(self.contents, names, experts, vision_modules, heads)
        )

    @property
    def task(self) -> str:
        """PEFT's `task_type` if it is not text generation; else empty."""
        if self.head:
            return str(self.head.task)
        return FEATURES if self.contents.task == FEATURES else ""

    @property
    def embedding(self) -> Embedding:
        """How a text becomes an embedding vector."""
        return embedding_of(self.notes.get("embedding"))

    @property
    def method(self) -> str:
        """PEFT's name of the method, in lower case."""
        return str(self.peft_config["peft_type"]).lower()

    @property
    def rank(self) -> int:
        """The largest rank of the text model's low-rank updates; 0 if there are none."""
        return max((change.rank for change in self.contents.low_rank), default=0)

    @property
    def target_modules(self) -> list[str]:
        """Last parts of the names of the changed modules, sorted."""
        changed = [
            *self.contents.changed_modules,
            *(each.module for each in self.contents.bottlenecks),
        ]
        return sorted({module.rpartition(".")[2] for module in changed})


def read_package(file: BinaryIO, size: int) -> Package:
    """Read and validate the package in `file`, which is `size` bytes long.

    Raises:
        PackageError: It is not a package, or cannot be served.
    """
    header = read_tensor_header(file, size)
    if MANIFEST_KEY not in header.metadata:
        raise PackageError(
            f"the file has no {MANIFEST_KEY!r} metadata: it is a bare tensor file. Upload or pack "
            f"the PEFT folder that holds it together with {CONFIG_FILE}",
            "INVALID_ADAPTER_CONFIG",
        )
    manifest = parse_manifest(header.metadata[MANIFEST_KEY])
    checked, contents = check_contents(manifest.peft_config, unstacked(header.tensors))
    check_use(contents, manifest.notes)
    return Package(checked, manifest.peft_config, manifest.notes, contents, header)


def digest_of(file: BinaryIO) -> str:
    """Return the digest of the package in `file`: `sha256:` and 64 hexadecimal digits."""
    sha256 = hashlib.sha256()
    file.seek(0)
    while chunk := file.read(_COPY_BYTES):
        sha256.update(chunk)
    return f"sha256:{sha256.hexdigest()}"


def check_use(contents: Contents, notes: Mapping[str, object]) -> None:
    """Check that `notes` on classification and embedding fit an adapter with such `contents`.

    Raises:
        PackageError: They do not.
    """
    if contents.head and contents.head.task.classifies:
        labels_of(contents.head, notes)
    elif "classification" in notes:
        raise PackageError(
            "the note classification needs a classification head, with task_type SEQ_CLS or "
            "TOKEN_CLS",
            "INVALID_ADAPTER_CONFIG",
        )
    if contents.head and "embedding" in notes:
        raise PackageError(
            f"the note embedding needs an adapter without a head, got task_type "
            f"{contents.head.task}",
            "INVALID_ADAPTER_CONFIG",
        )


def check_contents(
    config: Mapping[str, object], tensors: Mapping[str, TensorInfo]
) -> tuple[AdapterConfig, Contents]:
    """Return the validated `config`, and what an adapter with `tensors` changes.

    Raises:
        PackageError: It cannot be served, or the config is too large.
    """
    # Measured in the compact form that a package holds, so what can be packed can be read.
    if len(compact_json(config)) > MAX_CONFIG_BYTES:
        raise PackageError(
            f"the config is above {MAX_CONFIG_BYTES} bytes", "INVALID_ADAPTER_CONFIG"
        )
    return read_contents(config, tensors)
