"""An adapter package: one safetensors file that says everything about itself.

The tensors have the names that PEFT gave them, so any safetensors reader can open the file. The
`loramux.manifest` entry of its metadata is a JSON document with the PEFT config as it was. Equal
input gives equal bytes, and the SHA-256 of those bytes is the adapter's identity.
"""

import errno
import hashlib
import json
import os
import stat
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO, Protocol

from loramux_adapters.errors import PackageError, shown
from loramux_adapters.lora import LoraModule, lora_modules
from loramux_adapters.lora_config import LoraConfig
from loramux_adapters.peft_config import MAX_CONFIG_BYTES, check_config
from loramux_adapters.strict_json import parse_object
from loramux_adapters.tensorfile import ITEM_BYTES, TensorFile, TensorInfo, encode_header
from loramux_adapters.tensorfile import read_header as read_tensor_header

FORMAT_VERSION = 1
KIND = "lora"
MANIFEST_KEY = "loramux.manifest"
CONFIG_FILE = "adapter_config.json"
TENSOR_FILE = "adapter_model.safetensors"
_COPY_BYTES = 1 << 20


class Output(Protocol):
    """What a package is written to."""

    def write(self, piece: bytes, /) -> object:
        """Append `piece`."""


@dataclass(frozen=True, slots=True)
class Package:
    """A checked package; its tensor bytes stay in the file."""

    config: LoraConfig
    peft_config: Mapping[str, object]
    """`adapter_config.json` as PEFT wrote it."""
    modules: list[LoraModule]
    file: TensorFile

    @property
    def rank(self) -> int:
        """The largest rank of any module."""
        return max(module.rank for module in self.modules)

    @property
    def target_modules(self) -> list[str]:
        """The last parts of the names of the adapted layers, sorted."""
        return sorted({module.module.rpartition(".")[2] for module in self.modules})


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
    try:
        manifest = parse_object(header.metadata[MANIFEST_KEY].encode(), "the manifest")
    except ValueError as error:
        raise PackageError(str(error), "INVALID_ADAPTER_CONFIG") from None
    version, kind, config = (manifest.get(key) for key in ("format", "kind", "peft_config"))
    if type(version) is not int or version != FORMAT_VERSION:
        raise PackageError(
            f"the manifest has format {shown(version)}; this version reads {FORMAT_VERSION}",
            "INVALID_ADAPTER_CONFIG",
        )
    if kind != KIND:
        raise PackageError(
            f"the manifest has kind {shown(kind)}; {KIND!r} is served",
            "UNSUPPORTED_ADAPTER_FEATURE",
        )
    if not isinstance(config, dict):
        raise PackageError("the manifest has no peft_config object", "INVALID_ADAPTER_CONFIG")
    checked = _check(config)
    return Package(checked, config, lora_modules(checked, header.tensors), header)


def pack(source: Path, output: Output) -> None:
    """Write the PEFT folder `source` to `output` as a package.

    Memory stays bounded: tensor bytes are copied, never held.

    Raises:
        PackageError: The folder is not an adapter that can be served.
    """
    config = _read_config(source)
    checked = _check(config)
    with _open_tensors(source) as tensors:
        header = read_tensor_header(tensors, os.fstat(tensors.fileno()).st_size)
        lora_modules(checked, header.tensors)
        # Wide items first, so that every tensor is aligned; then by name.
        order = sorted(header.tensors.values(), key=lambda t: (-ITEM_BYTES[t.dtype], t.name))
        manifest = {"format": FORMAT_VERSION, "kind": KIND, "peft_config": _sorted(config)}
        metadata = {"format": "pt", MANIFEST_KEY: _compact(manifest)}
        output.write(encode_header(_end_to_end(order), metadata))
        for tensor in order:
            tensors.seek(header.data_start + tensor.offset)
            _copy(tensors, output, tensor)


def digest_of(file: BinaryIO) -> str:
    """Return the identity of the package in `file`: `sha256:` and 64 hexadecimal digits."""
    sha256 = hashlib.sha256()
    file.seek(0)
    while piece := file.read(_COPY_BYTES):
        sha256.update(piece)
    return f"sha256:{sha256.hexdigest()}"


def is_peft_folder(path: Path) -> bool:
    """Return whether `path` looks like what PEFT's `save_pretrained` writes."""
    return (path / CONFIG_FILE).is_file()


def _end_to_end(tensors: Iterable[TensorInfo]) -> Iterator[TensorInfo]:
    end = 0
    for tensor in tensors:
        yield replace(tensor, offset=end)
        end += tensor.num_bytes


def _check(config: Mapping[str, object]) -> LoraConfig:
    # The compact form is what a package holds, so what can be packed can be read.
    if len(_compact(config)) > MAX_CONFIG_BYTES:
        raise PackageError(
            f"the config is above {MAX_CONFIG_BYTES} bytes", "INVALID_ADAPTER_CONFIG"
        )
    return check_config(config)


def _compact(value: object) -> str:
    return json.dumps(value, separators=(",", ":"))


def _sorted(value: object) -> object:
    """Return `value` with its keys in order, so that equal configs give equal bytes."""
    if isinstance(value, dict):
        return {
            # Of several patterns that match a module the first counts: their order has a meaning.
            key: entry if key in ("rank_pattern", "alpha_pattern") else _sorted(entry)
            for key, entry in sorted(value.items())
        }
    if isinstance(value, list):
        return [_sorted(entry) for entry in value]
    return value


def _read_config(source: Path) -> dict[str, object]:
    path = source / CONFIG_FILE
    try:
        with _open_regular(path) as file:
            raw = file.read(MAX_CONFIG_BYTES + 1)
    except OSError as error:
        raise PackageError(
            f"{source} has no readable {CONFIG_FILE} ({error.strerror}): expected a folder "
            "that PEFT's save_pretrained wrote",
            "INVALID_ADAPTER_CONFIG",
        ) from None
    if len(raw) > MAX_CONFIG_BYTES:
        raise PackageError(
            f"{CONFIG_FILE} is above {MAX_CONFIG_BYTES} bytes", "INVALID_ADAPTER_CONFIG"
        )
    try:
        return parse_object(raw, CONFIG_FILE)
    except ValueError as error:
        raise PackageError(str(error), "INVALID_ADAPTER_CONFIG") from None


def _open_tensors(source: Path) -> BinaryIO:
    path = source / TENSOR_FILE
    try:
        return _open_regular(path)
    except OSError as error:
        hint = ""
        if (source / "adapter_model.bin").exists():
            hint = (
                "; adapter_model.bin is a pickle, which can run code: save the adapter again "
                "with safe_serialization=True"
            )
        raise PackageError(
            f"{source} has no readable {TENSOR_FILE} ({error.strerror}){hint}"
        ) from None


def _open_regular(path: Path) -> BinaryIO:
    # Asked before opening: to open a pipe is to wait for whoever writes to it.
    if not stat.S_ISREG(path.stat().st_mode):
        raise OSError(errno.EINVAL, "not a regular file")
    return path.open("rb")


def _copy(source: BinaryIO, output: Output, tensor: TensorInfo) -> None:
    left = tensor.num_bytes
    while left:
        piece = source.read(min(left, _COPY_BYTES))
        if not piece:
            raise PackageError(f"the file ended inside tensor {tensor.name}: it changed meanwhile")
        output.write(piece)
        left -= len(piece)
