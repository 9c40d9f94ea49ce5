"""The `--adapters` directory: each PEFT folder or package in it is an adapter.

It is scanned periodically. What is still being written is not taken: files have to be unchanged
between two scans and while they are read, and have to form a whole package.
"""

import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

from loramux.errors import FailedPreconditionError
from loramux_adapters import PackageError, check_adapter_name, pack_source
from loramux_adapters.peft_folder import CONFIG_FILE, TENSOR_FILE, folder_hint, is_peft_folder
from loramux_adapters.sources import FILES
from loramux_server.store.check import check_package
from loramux_server.store.other_base import other_base
from loramux_server.store.record import AdapterRecord, directory_record
from loramux_server.store.registry import Registry
from loramux_server.store.served_base import ServedBase
from loramux_server.store.signers import ANYBODY, TrustedSigners
from loramux_server.store.write_lock import ADDED, REMOVED

_log = logging.getLogger(__name__)

MAX_AT_ONCE = 4
"""Entries that are read, checked and stored concurrently."""
_AROUND = "{0} is itself an adapter and is skipped: to serve it, use its parent folder, {1}"


class Directory:
    """Keeps a registry in sync with a directory. One thread at a time may use it; it blocks."""

    def __init__(
        self,
        path: Path | None,
        registry: Registry,
        base: ServedBase,
        on_change: Callable[[str, AdapterRecord], object] = lambda what, record: None,
        signers: TrustedSigners = ANYBODY,
    ) -> None:
        """Start from what the registry has of it.

        Args:
            path: The directory; None provides nothing.
            registry: Where its adapters are registered.
            base: The base model that they have to fit.
            on_change: Called with each version that was ADDED or REMOVED.
            signers: Who has to have signed them.
        """
        self._path = path
        self._registry = registry
        self._base = base
        self._signers = signers
        self._on_change = on_change
        self._registered = {r.full_name: r.stamp for r in registry.records() if r.is_provided}
        """Adapter -> the stamp of its files that is registered."""
        self._seen: dict[str, str] = {}
        """Entry -> the stamp of its files in the last scan."""
        self._refused: dict[str, str] = {}
        """Entry -> a stamp of its files that was rejected."""
        self._said: dict[str, str] = {}
        """Entry -> the last message logged about it."""

    def scan(
        self, *, settles: bool = True, is_cancelled: Callable[[], bool] = lambda: False
    ) -> int:
        """Scan: register what is new or changed, delete what is gone. Return how many it provides.

        Unchanged entries are not read again. An entry that cannot be served is logged and left out;
        the previous version of its name stays.

        Args:
            settles: Take only entries that are unchanged since the previous scan.
            is_cancelled: Once it returns True, nothing more is done.

        Raises:
            OSError: The directory cannot be read.
        """
        seen: dict[str, str] = {}
        entries: list[tuple[Path, str, str]] = []
        for name, path in self._entries().items():
            try:
                seen[name] = stamp = _stamp(path)
            except OSError as error:
                if name in self._seen:
                    seen[name] = self._seen[name]  # unreadable does not mean deleted
                self._leave_out(path, error)
                continue
            is_done = stamp in (self._registered.get(name), self._refused.get(name))
            if not is_done and (not settles or self._seen.get(name) == stamp):
                entries.append((path, name, stamp))

        def take(entry: tuple[Path, str, str]) -> None:
            path, name, stamp = entry
            if is_cancelled():
                return
            try:
                check_adapter_name(name)
                self._import(path, name, stamp)
            except (PackageError, FailedPreconditionError, OSError) as error:
                self._leave_out(path, error)

        if entries:
            with ThreadPoolExecutor(MAX_AT_ONCE, thread_name_prefix="directory") as pool:
                for _ in pool.map(take, entries):
                    pass  # raises what `take` does not handle
        if is_cancelled():
            return len(self._registered)
        # An entry that is being replaced by hand may be missing in a single scan.
        gone = self._registered.keys() - seen.keys()
        for name in gone - self._seen.keys() if settles else gone:
            for record in self._registry.forget_directory(name):
                self._on_change(REMOVED, record)
            del self._registered[name]
        self._seen = seen
        return len(self._registered)

    def _entries(self) -> dict[str, Path]:
        """Return the entries by adapter name; a folder takes precedence over a file."""
        entries: dict[str, Path] = {}
        if self._path is None:
            return entries
        found = self._path.iterdir()
        if is_peft_folder(self._path):
            self._log_once(CONFIG_FILE, _AROUND.format(self._path, self._path.resolve().parent))
            found = (path for path in found if path.name != TENSOR_FILE)
        for path in sorted(found, key=lambda path: (not path.is_dir(), path.name)):
            if not _is_adapter(path):
                if hint := folder_hint(path):
                    self._log_once(path.name, f"{path.name} is skipped: no {CONFIG_FILE}; {hint}")
                continue
            name = path.stem if path.is_file() else path.name
            chosen = entries.setdefault(name, path)
            if chosen != path:
                self._log_once(
                    path.name, f"{path.name} is skipped: {chosen.name}/ is adapter {name!r}"
                )
        return entries

    def _import(self, path: Path, name: str, stamp: str) -> None:
        """Register the files of an entry; do nothing if they no longer have `stamp`.

        Raises:
            PackageError: They cannot be served.
            FailedPreconditionError: They seem to be made for another base (`--strict-base`).
        """
        if any(not record.is_provided for record in self._registry.versions(name)):
            raise PackageError(f"adapter {name!r} was uploaded; delete it to serve this one")
        staged = self._registry.stage()
        try:
            pack_source(path, staged, base=self._base)
            package = check_package(staged.file, staged.size, self._base)
            self._signers.check(staged.file, package)
            if _stamp(path) != stamp:
                return  # still being written: a later scan takes it
            other = other_base(package, self._base)
            record = replace(
                self._registry.publish(name, staged, package),
                vocab_size=self._base.vocabulary.size_for(package.contents),
                other_base=other,
            )
            served, is_new = self._registry.register(directory_record(record, stamp))
        except (PackageError, FailedPreconditionError):
            self._refused[name] = stamp
            raise
        finally:
            self._registry.discard(staged)
        self._registered[name] = stamp
        if other:
            self._log_once(
                path.name, f"{path.name} seems to be made for another base model: {other}"
            )
        if is_new:
            self._on_change(ADDED, served)

    def _leave_out(self, path: Path, error: Exception) -> None:
        self._log_once(path.name, f"{path.name} is skipped: {error}")

    def _log_once(self, entry: str, message: str) -> None:
        """Log `message` unless it was the last one about this entry."""
        if self._said.get(entry) != message:
            self._said[entry] = message
            _log.warning("%s", message)


def _is_adapter(path: Path) -> bool:
    """Return whether `path` looks like an adapter, or cannot be read."""
    try:
        return is_peft_folder(path) or (path.suffix == ".safetensors" and path.is_file())
    except OSError:
        return True  # reading it will report the error


def _stamp(path: Path) -> str:
    """Return a text that changes with the files of an entry."""
    files = [path / name for name in FILES] if path.is_dir() else [path]
    states = [file.stat() for file in files if file.exists()]
    return ",".join(f"{state.st_mtime_ns}:{state.st_size}:{state.st_ino}" for state in states)
