"""Adapters as any tool saved them: which tool that was, and how they become packages."""

import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from loramux_adapters.adapters_library import TENSOR_FILE as LIBRARY_TENSOR_FILE
from loramux_adapters.adapters_library import is_adapters_library, pack_adapters_library
from loramux_adapters.added_tokens import FILE as TOKENS_FILE
from loramux_adapters.companions import COMPANIONS
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

if TYPE_CHECKING:
    from loramux_adapters.weights.fold import Folded

BESIDE = (NOTES_FILE, TOKENS_FILE, *COMPANIONS)
"""Files of a PEFT folder that packing reads beside config and tensors, where there are any."""
FILES = (
    CONFIG_FILE, TENSOR_FILE, LIBRARY_TENSOR_FILE, HEAD_CONFIG_FILE, HEAD_TENSOR_FILE, *BESIDE,
)  # fmt: skip
"""All files of a folder that packing reads, whichever tool saved it."""
MAX_ERROR = 0.01
"""Of what a layer adds, by norm, this share may be lost where the rank is too high."""
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

    What is served of PEFT is packed as it is, LoRA of the adapters library and of kohya-style
    trainers under the names of PEFT, and the bottlenecks of that library under their own. Methods
    of PEFT in `kinds.FOLDED` are folded to LoRA, or to whole layers.

    Args:
        source: A folder, a file of tensors, or a package.
        output: What to write to.
        notes: Notes in place of those that the source has; None leaves one out.
        max_error: Share of a layer's change that may be lost where its rank is too high for LoRA.
        base: The model that it is for. VeRA, HRA, OFT and others need it, and kohya-style names
            can.

    Returns:
        What became of each layer that was folded to LoRA.

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
    """Open `path` as the file of a package; what is not one is packed into a temporary file.

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
    """Open the package, or the adapter that some tool saved, at `path`.

    Raises:
        PackageError: It is not an adapter that can be served.
        OSError: The path cannot be read.
    """
    with open_source(path) as file:
        yield file, read_package(file, os.fstat(file.fileno()).st_size)


def _copy(source: Path, output: Output, notes: Mapping[str, object | None] | None) -> None:
    """Write the package `source`, which is checked, to `output`."""
    with open_regular(source) as file:
        read_package(file, os.fstat(file.fileno()).st_size)
        if notes:
            raise PackageError(f"{source} is a package already; unpack it to change its notes")
        file.seek(0)
        while piece := file.read(_COPY_BYTES):
            output.write(piece)


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
            f"to fold an adapter to LoRA needs numpy: {install_command('cli')}",
            "UNSUPPORTED_ADAPTER_FEATURE",
        ) from None
    return fold_source(source, output, notes=notes, max_error=max_error, base=base)
