"""Adapters as any tool saved them: which tool that was, and how they become packages.

Each reader takes a path, writes a package of what it holds to an output, and says by name what it
cannot: see `_readers`.
"""

import os
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from loramux_adapters.adapters_library import is_adapters_library, pack_adapters_library
from loramux_adapters.errors import PackageError
from loramux_adapters.files import open_regular
from loramux_adapters.kohya import is_kohya, pack_kohya
from loramux_adapters.package import (
    Output,
    Package,
    is_peft_folder,
    pack,
    read_config,
    read_package,
)

_COPY_BYTES = 1 << 20

Notes = Mapping[str, object | None] | None
"""Notes that take the place of those that a source has; None leaves one out."""


def pack_source(source: Path, output: Output, *, notes: Notes = None) -> None:
    """Write `source`, whichever tool saved it, to `output` as a package.

    A LoRA of PEFT is packed as it is, and so are those of the adapters library and of kohya-style
    trainers, under the names of PEFT. AdaLoRA is folded to LoRA, which needs numpy.

    Raises:
        PackageError: It is not an adapter that can be served.
        OSError: It cannot be read.
    """
    for is_of_tool, write in _READERS:
        if is_of_tool(source):
            write(source, output, notes=notes)
            return
    if not source.is_file():
        pack(source, output, notes=notes)
        return
    with open_regular(source) as file:
        read_package(file, os.fstat(file.fileno()).st_size)
        if notes:
            raise PackageError(f"{source} is a package already; unpack it to change its notes")
        file.seek(0)
        while piece := file.read(_COPY_BYTES):
            output.write(piece)


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


def _is_adalora(source: Path) -> bool:
    return is_peft_folder(source) and read_config(source).get("peft_type") == "ADALORA"


def _pack_adalora(source: Path, output: Output, *, notes: Notes = None) -> None:
    try:
        from loramux_adapters.weights.adalora import pack_adalora
    except ImportError as error:
        if error.name != "numpy":
            raise
        raise PackageError(
            "to fold AdaLoRA needs numpy: pip install 'loramux[cli]'", "UNSUPPORTED_ADAPTER_FEATURE"
        ) from None
    pack_adalora(source, output, notes=notes)


_READERS: tuple[tuple[Callable[[Path], bool], Callable[..., None]], ...] = (
    (is_kohya, pack_kohya),
    (is_adapters_library, pack_adapters_library),
    (_is_adalora, _pack_adalora),
)
"""Of each tool but PEFT's LoRA: whether a path holds what it saved, and what packs that."""
