"""An adapter package: one safetensors file that says everything about itself.

The tensors have the names that PEFT gave them, so any safetensors reader can open the file. Where
they would be too many, those of experts lie in stacks; see `loramux_adapters.stacks`. The
`loramux.manifest` entry of its metadata is a JSON document with the PEFT config as it was. Equal
input gives equal bytes (`loramux_adapters.packing`), and the SHA-256 of those bytes is the
adapter's identity.
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
        self,
        names: Collection[str],
        experts: Mapping[str, ExpertsShape] | None = None,
        sight: Collection[str] = (),
        heads: Mapping[str, HeadShape] | None = None,
    ) -> "Package":
        """Return it with its modules under the names that they have in a base; see `named_for`."""
        return replace(self, contents=named_for(self.contents, names, experts, sight, heads))

    @property
    def task(self) -> str:
        """What it does instead of continuing text, as `task_type` calls that; empty if nothing."""
        if self.head:
            return str(self.head.task)
        return FEATURES if self.contents.task == FEATURES else ""

    @property
    def embedding(self) -> Embedding:
        """How it makes one vector of a text, where it is asked for one."""
        return embedding_of(self.notes.get("embedding"))

    @property
    def method(self) -> str:
        """What trained it, as PEFT calls that, in lower case."""
        return str(self.peft_config["peft_type"]).lower()

    @property
    def rank(self) -> int:
        """The largest rank of any module that reads text; 0 where there is no low-rank change."""
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
    checked, contents = check_contents(manifest.peft_config, unstacked(header.tensors))
    check_use(contents, manifest.notes)
    return Package(checked, manifest.peft_config, manifest.notes, contents, header)


def digest_of(file: BinaryIO) -> str:
    """Return the identity of the package in `file`: `sha256:` and 64 hexadecimal digits."""
    sha256 = hashlib.sha256()
    file.seek(0)
    while piece := file.read(_COPY_BYTES):
        sha256.update(piece)
    return f"sha256:{sha256.hexdigest()}"


def check_use(contents: Contents, notes: Mapping[str, object]) -> None:
    """Demand that what `notes` say of the use of an adapter is said of one with such `contents`.

    Raises:
        PackageError: It is not.
    """
    if contents.head and contents.head.task.classifies:
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


def check_contents(
    config: Mapping[str, object], tensors: Mapping[str, TensorInfo]
) -> tuple[AdapterConfig, Contents]:
    """Return the checked `config`, and what an adapter of it with `tensors` does.

    Raises:
        PackageError: It is no adapter that is served, or the config is too large.
    """
    # The compact form is what a package holds, so what can be packed can be read.
    if len(compact_json(config)) > MAX_CONFIG_BYTES:
        raise PackageError(
            f"the config is above {MAX_CONFIG_BYTES} bytes", "INVALID_ADAPTER_CONFIG"
        )
    return read_contents(config, tensors)
