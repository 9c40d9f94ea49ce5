"""Adapters in any supported format: which tool saved them, and packing them."""

import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from loramux_adapters.adapters_library import TENSOR_FILE as LIBRARY_TENSOR_FILE
from loramux_adapters.adapters_library import is_adapters_library, pack_adapters_library
from loramux_adapters.added_tokens import FILE as TOKENS_FILE
from loramux_adapters.errors import PackageError
from loramux_adapters.extras import install_command
from loramux_adapters.files import open_regular
from loramux_adapters.kinds import is_folded
from loramux_adapters.known_layers import KnownLayers
from loramux_adapters.kohya import is_kohya, pack_kohya
from loramux_adapters.package import Package, read_package
from loramux_adapters.packing import Output, pack
from loramux_adapters.peft_folder import (
    CONFIG_FILE,
    NOTES_FILE,
    TENSOR_FILE,
    is_peft_folder,
    read_config,
)
from loramux_adapters.prediction_head import CONFIG_FILE as HEAD_CONFIG_FILE
from loramux_adapters.prediction_head import TENSOR_FILE as HEAD_TENSOR_FILE
from loramux_adapters.sidecar_files import SIDECAR_FILES

if TYPE_CHECKING:
    from loramux_adapters.weights.fold import Folded

OPTIONAL_FILES = (NOTES_FILE, TOKENS_FILE, *SIDECAR_FILES)
"""Optional files of a PEFT folder that packing reads beside config and tensors."""
FILES = (
    CONFIG_FILE, TENSOR_FILE, LIBRARY_TENSOR_FILE, HEAD_CONFIG_FILE, HEAD_TENSOR_FILE,
    *OPTIONAL_FILES,
)  # fmt: skip
"""All files of a folder that packing may read, whichever tool saved it."""
MAX_ERROR = 0.01
"""Share of a layer's update, by norm, that may be lost if its rank has to be reduced."""
_COPY_BYTES = 1 << 20


def pack_source(
    source: Path,
    output: Output,
    *,
    notes: Mapping[str, object | None] | None = None,
    max_error: float = MAX_ERROR,
    base: KnownLayers | None = None,
) -> "list[Folded]":
    """Write `source`, whichever tool saved it, to `output` as a package.

    Supported PEFT methods are packed unchanged. LoRAs of the adapters library and of kohya-style
    trainers are renamed to PEFT's names; bottlenecks of that library keep theirs. PEFT methods in
    `kinds.FOLDED` are converted to LoRA, or to full weights of the changed layers.

    Args:
        source: A folder, a tensor file, or a package.
        output: Where to write.
        notes: Notes that override those of the source; None removes a note.
        max_error: Share of a layer's update that may be lost if its rank is too high for LoRA.
        base: The base model. VeRA, HRA, OFT and others need it, and names of kohya-style
            trainers may.

    Returns:
        A report for each layer that was converted to LoRA.

    Raises:
        PackageError: It is not an adapter that can be served.
        OSError: It cannot be read.
    """
    if is_kohya(source):
        pack_kohya(source, output, notes=notes, base=base)
    elif source.is_file():
        _copy(source, output, notes)
    elif is_adapters_library(source):
        pack_adapters_library(source, output, notes=notes)
    elif _is_folded(source):
        return _fold(source, output, notes, max_error, base)
    else:
        pack(source, output, notes=notes)
    return []


@contextmanager
def open_source(path: Path) -> Iterator[BinaryIO]:
    """Open `path` as a package file; anything else is packed into a temporary file first.

    Raises:
        PackageError: It is not an adapter that can be served.
        OSError: The path cannot be read.
    """
    if not path.is_dir() and not is_kohya(path):
        with open_regular(path) as file:
            yield file
        return
    with tempfile.TemporaryFile(prefix="loramux-") as packed:
        pack_source(path, packed)
        packed.flush()
        yield packed


@contextmanager
def open_package(path: Path) -> Iterator[tuple[BinaryIO, Package]]:
    """Open and parse the package or the adapter, whichever tool saved it, at `path`.

    Raises:
        PackageError: It is not an adapter that can be served.
        OSError: The path cannot be read.
    """
    with open_source(path) as file:
        yield file, read_package(file, os.fstat(file.fileno()).st_size)


def _copy(source: Path, output: Output, notes: Mapping[str, object | None] | None) -> None:
    """Write the package `source` to `output` after validating it."""
    with open_regular(source) as file:
        read_package(file, os.fstat(file.fileno()).st_size)
        if notes:
            raise PackageError(f"{source} is a package already; unpack it to change its notes")
        file.seek(0)
        while chunk := file.read(_COPY_BYTES):
            output.write(chunk)


def _is_folded(source: Path) -> bool:
    return is_peft_folder(source) and is_folded(read_config(source))


def _fold(
    source: Path,
    output: Output,
    notes: Mapping[str, object | None] | None,
    max_error: float,
    base: KnownLayers | None,
) -> "list[Folded]":
    try:
        from loramux_adapters.weights.sources import fold_source
    except ImportError as error:
        if error.name != "numpy":
            raise
        raise PackageError(
            f"converting an adapter to LoRA needs numpy: {install_command('cli')}",
            "UNSUPPORTED_ADAPTER_FEATURE",
        ) from None
    return fold_source(source, output, notes=notes, max_error=max_error, base=base)
