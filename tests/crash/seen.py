"""The store's operations on its folder and its catalog, one by one, for who watches them.

What watches may note an operation, let it fail, cut it short, or end the process.
"""

import io
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Protocol, cast

from loramux_server.store.catalog import Catalog
from loramux_server.store.files import Files
from loramux_server.store.registry import Registry


@dataclass(frozen=True, slots=True)
class Op:
    """One operation; paths are those below the store's folder."""

    kind: str
    """make_folder, create, open, read, write, sync, sync_folder, link, replace, remove, entries,
    modified, lock or commit."""
    path: str = ""
    """What it is done to; of a link or a replacement, what gets the name."""
    source: str = ""
    """What is linked or renamed."""
    offset: int = 0
    data: bytes = b""
    """What is written, and from where on."""

    @property
    def is_change(self) -> bool:
        """Whether the disk is another one after it, or more of it durable."""
        return self.kind not in ("open", "read", "entries", "modified", "lock")


class Watch(Protocol):
    """Who is told of operations, from any thread."""

    def before(self, op: Op) -> int | None:
        """Hear of an operation that is about to be done; may raise.

        Returns:
            How many bytes of a write are to be done; None means all.
        """

    def after(self, op: Op) -> None:
        """Hear of an operation that was done; may raise."""


class Log:
    """Keeps what changes something."""

    def __init__(self) -> None:
        self.ops: list[Op] = []

    def before(self, op: Op) -> None:
        pass

    def after(self, op: Op) -> None:
        if op.is_change:
            self.ops.append(op)


class SeenFiles(Files):
    """Does what `Files` does below `folder`, and tells of it."""

    def __init__(self, folder: Path, watch: Watch) -> None:
        self._folder = folder
        self._watch = watch

    def make_folder(self, path: Path) -> None:
        with self._seen("make_folder", path):
            super().make_folder(path)

    def create(self, path: Path, *, must_not_exist: bool) -> BinaryIO:
        with self._seen("create", path):
            file = super().create(path, must_not_exist=must_not_exist)
        return self._watched(file, path)

    def open(self, path: Path) -> BinaryIO:
        with self._seen("open", path):
            file = super().open(path)
        return self._watched(file, path)

    def sync(self, file: BinaryIO) -> None:
        file.flush()
        with self._seen("sync", Path(cast(Any, file).raw.path)):
            super().sync(file)

    def sync_folder(self, path: Path) -> None:
        with self._seen("sync_folder", path):
            super().sync_folder(path)

    def link(self, source: Path, target: Path) -> None:
        with self._seen("link", target, source):
            super().link(source, target)

    def replace(self, source: Path, target: Path) -> None:
        with self._seen("replace", target, source):
            super().replace(source, target)

    def remove(self, path: Path) -> None:
        with self._seen("remove", path):
            super().remove(path)

    def entries(self, folder: Path) -> list[Path]:
        with self._seen("entries", folder):
            return super().entries(folder)

    def modified(self, path: Path) -> float:
        with self._seen("modified", path):
            return super().modified(path)

    def lock(self, path: Path) -> BinaryIO:
        with self._seen("lock", path):
            return super().lock(path)

    def _watched(self, file: BinaryIO, path: Path) -> BinaryIO:
        raw = _SeenFile(cast(Any, file).detach(), path, self._name(path), self._watch)
        made = io.BufferedRandom(raw) if raw.writable() else io.BufferedReader(raw)
        return cast(BinaryIO, made)

    def _name(self, path: Path) -> str:
        return str(path.relative_to(self._folder)) if path.is_relative_to(self._folder) else ".."

    @contextmanager
    def _seen(self, kind: str, path: Path, source: Path | None = None) -> Iterator[None]:
        op = Op(kind, self._name(path), self._name(source) if source else "")
        self._watch.before(op)
        yield
        self._watch.after(op)


class _SeenFile(io.RawIOBase):
    """An open file below the buffer, so that each call of the system is one operation."""

    def __init__(self, raw: io.FileIO, path: Path, name: str, watch: Watch) -> None:
        self._raw = raw
        self.path = path
        self._name = name
        self._watch = watch

    def readable(self) -> bool:
        return self._raw.readable()

    def writable(self) -> bool:
        return self._raw.writable()

    def seekable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        op = Op("read", self._name)
        self._watch.before(op)
        found = self._raw.readinto(buffer)
        self._watch.after(op)
        return found or 0

    def write(self, data: Any) -> int:
        piece = bytes(data)
        offset = self._raw.tell()
        num_bytes = self._watch.before(Op("write", self._name, offset=offset, data=piece))
        done = self._raw.write(piece[:num_bytes]) or 0
        self._watch.after(Op("write", self._name, offset=offset, data=piece[:done]))
        return done

    def seek(self, offset: int, whence: int = 0) -> int:
        return self._raw.seek(offset, whence)

    def tell(self) -> int:
        return self._raw.tell()

    def fileno(self) -> int:
        return self._raw.fileno()

    def close(self) -> None:
        if not self.closed:
            try:
                super().close()
            finally:
                self._raw.close()


class SeenCatalog(Catalog):
    """Tells of each transaction that changes something, of which SQLite makes one operation."""

    watch: Watch

    def add(self, *arguments: Any) -> None:
        self._commit(super().add, *arguments)

    def update(self, *arguments: Any) -> None:
        self._commit(super().update, *arguments)

    def keep_seals(self, *arguments: Any) -> None:
        self._commit(super().keep_seals, *arguments)

    def remove(self, *arguments: Any) -> None:
        self._commit(super().remove, *arguments)

    def move(self, *arguments: Any) -> None:
        self._commit(super().move, *arguments)

    def _commit(self, change: Callable[..., None], *arguments: Any) -> None:
        op = Op("commit")
        try:
            self.watch.before(op)
            change(*arguments)
            self.watch.after(op)
        except BaseException:
            self.needs_reload = True  # as after an error of the database itself
            raise


def seen_registry(folder: Path, watch: Watch, url: str | None = None) -> Registry:
    """Open the registry in `folder`; `watch` is told of all that it does there.

    The catalog is the database at `url`, or SQLite in the folder.
    """

    def open_catalog(folder: Path) -> Catalog:
        catalog = SeenCatalog(url or f"sqlite:///{folder / 'catalog.sqlite'}")
        catalog.watch = watch
        return catalog

    return Registry(folder, files=SeenFiles(folder, watch), catalog=open_catalog)
