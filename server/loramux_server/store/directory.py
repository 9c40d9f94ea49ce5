"""The `--adapters` directory: each PEFT folder or package in it is an adapter."""

import logging
import shutil
from collections.abc import Callable
from pathlib import Path

from loramux_adapters import PackageError, check_adapter_name, pack
from loramux_adapters.package import CONFIG_FILE, TENSOR_FILE, is_peft_folder
from loramux_server.store.check import ServedBase, check_package
from loramux_server.store.record import UPLOAD
from loramux_server.store.registry import Registry, directory_record

_log = logging.getLogger(__name__)


def import_directory(
    directory: Path | None,
    registry: Registry,
    base: ServedBase,
    is_cancelled: Callable[[], bool] = lambda: False,
) -> int:
    """Bring `registry` in step with `directory` and return how many adapters it provides.

    What has not changed since the last time is not read again. An entry that cannot be served is
    logged and left out; it does not keep the others from being served. No directory provides none.
    Once it `is_cancelled`, nothing more is done.

    Raises:
        OSError: The directory cannot be read.
    """
    known = registry.from_directory()
    found: set[str] = set()
    for name, path in _entries(directory).items() if directory else ():
        if is_cancelled():
            return len(found)
        try:
            check_adapter_name(name)
            stamp = _stamp(path)
            if name not in known or known[name].stamp != stamp:
                _import(path, name, stamp, registry, base)
            found.add(name)
        except (PackageError, OSError) as error:
            _log.warning("%s is left out: %s", path.name, error)
    for name in known.keys() - found:
        registry.forget_directory(name)
    return len(found)


def _entries(directory: Path) -> dict[str, Path]:
    """Return the entries of `directory` by the names of their adapters; a folder goes first."""
    entries: dict[str, Path] = {}
    for path in sorted(directory.iterdir(), key=lambda path: (not path.is_dir(), path.name)):
        if not (is_peft_folder(path) or (path.suffix == ".safetensors" and path.is_file())):
            continue
        name = path.stem if path.is_file() else path.name
        chosen = entries.setdefault(name, path)
        if chosen != path:
            _log.warning("%s is left out: %s is adapter %r", path.name, f"{chosen.name}/", name)
    return entries


def _import(path: Path, name: str, stamp: str, registry: Registry, base: ServedBase) -> None:
    if any(record.source == UPLOAD for record in registry.versions(name)):
        raise PackageError(f"adapter {name!r} was uploaded; delete it to serve this one")
    staged = registry.stage()
    try:
        if path.is_dir():
            pack(path, staged)
        else:
            with path.open("rb") as file:
                shutil.copyfileobj(file, staged, 1 << 20)
        package = check_package(staged.file, staged.size, base)
        record = registry.publish(name, staged, package)
        registry.register(directory_record(record, stamp))
    finally:
        registry.discard(staged)


def _stamp(path: Path) -> str:
    """Return what changes when the files of an entry do."""
    files = [path / CONFIG_FILE, path / TENSOR_FILE] if path.is_dir() else [path]
    states = [file.stat() for file in files if file.exists()]
    return ",".join(f"{state.st_mtime_ns}:{state.st_size}:{state.st_ino}" for state in states)
