"""A disk in memory: what the store did to it, and what of that a kill or a power cut leaves.

After a kill everything is there that a call of the system had done. After a power cut, of what was
not synced anything may be missing: bytes of a file may be those before, zeros, or only the first or
the last of them; a name may be the one before or any that it had since, each for itself. A
transaction of SQLite is there or not, and there once it was committed: its own files are none of
this model. Where a real process is killed they are real.
"""

import hashlib
import itertools
import random
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath

from tests.crash.seen import Op

FOLDER = -1
"""Stands for a folder where a name stands for a file otherwise."""

Names = dict[str, int]
"""Path -> number of the file, or FOLDER."""


@dataclass(frozen=True)
class Image:
    """What somebody finds who looks at the disk."""

    names: Names = field(default_factory=dict)
    contents: dict[int, bytes] = field(default_factory=dict)
    catalog: bytes | None = None

    @property
    def key(self) -> str:
        """Equal for what looks equal."""
        sha256 = hashlib.sha256(self.catalog or b"")
        first = {file: name for name, file in sorted(self.names.items(), reverse=True)}
        for name, file in sorted(self.names.items()):
            content = b"" if file == FOLDER else hashlib.sha256(self.contents[file]).digest()
            sha256.update(f"|{name}|{first[file]}|".encode() + content)
        return sha256.hexdigest()

    def write(self, folder: Path) -> None:
        """Make `folder` look like this."""
        folder.mkdir()
        written: dict[int, Path] = {}
        for name, file in sorted(self.names.items()):
            path = folder / name
            if file == FOLDER:
                path.mkdir(mode=0o700)
            elif file in written:
                path.hardlink_to(written[file])
            else:
                path.write_bytes(self.contents[file])
                written[file] = path
        if self.catalog is not None:
            (folder / "catalog.sqlite").write_bytes(self.catalog)


@dataclass
class _File:
    synced: bytes = b""
    content: bytes = b""

    def write(self, offset: int, data: bytes) -> None:
        gap = bytes(max(0, offset - len(self.content)))
        self.content = self.content[:offset] + gap + data + self.content[offset + len(data) :]

    def leftovers(self) -> list[bytes]:
        """Return what the file may hold after a power cut."""
        old, new = self.synced, self.content
        if old == new:
            return [new]
        both = min(len(old), len(new))
        begin = next((i for i in range(both) if old[i] != new[i]), both)
        half = (begin + len(new)) // 2
        zeros = new[:begin] + bytes(len(new) - begin)
        late = new[:begin] + bytes(half - begin) + new[half:]
        return list(dict.fromkeys([old, new, zeros, new[:half], late]))


class Disk:
    """Follows operations one by one."""

    def __init__(self, image: Image | None = None) -> None:
        image = image or Image()
        self._files = {n: _File(content, content) for n, content in image.contents.items()}
        self._names: dict[str, list[int | None]] = {n: [file] for n, file in image.names.items()}
        """Path -> what it stood for when its folder was synced last, and each time since."""
        self._catalog = image.catalog
        self._numbers = itertools.count(len(self._files))

    def apply(self, op: Op, catalog: bytes | None = None) -> None:
        """Do one operation; `catalog` is what a commit left in the catalog."""
        if op.kind == "make_folder":
            if op.path != "." and self._file(op.path) is None:
                self._set(op.path, FOLDER)
        elif op.kind == "create":
            if self._file(op.path) is None:
                number = next(self._numbers)
                self._files[number] = _File()
                self._set(op.path, number)
        elif op.kind == "write":
            self._files[self._open(op.path)].write(op.offset, op.data)
        elif op.kind == "sync":
            file = self._files[self._open(op.path)]
            file.synced = file.content
        elif op.kind == "sync_folder":
            for path, history in self._names.items():
                if _folder_of(path) == op.path:
                    del history[:-1]
        elif op.kind in ("link", "replace"):
            self._set(op.path, self._open(op.source))
            if op.kind == "replace" and self._file(op.source) != self._before(op.path):
                self._set(op.source, None)
        elif op.kind == "remove":
            if self._file(op.path) is not None:
                self._set(op.path, None)
        elif op.kind == "commit":
            self._catalog = catalog

    def killed(self) -> Image:
        """Return what a kill leaves."""
        names = {path: history[-1] for path, history in self._names.items()}
        return self._image(names, {n: file.content for n, file in self._files.items()})

    def without_power(self, limit: int, seed: int) -> Iterator[Image]:
        """Yield what a power cut may leave: all that is possible, or `limit` of that.

        First of all that nothing is left of what was not synced.
        """
        paths = list(self._names)
        choices: list[list[int | None] | list[bytes]] = [self._names[path] for path in paths]
        choices += [file.leftovers() for file in self._files.values()]
        count = 1
        for options in choices:
            count *= len(options)
        picks: Iterable[tuple[int | bytes | None, ...]]
        if count <= limit:
            picks = itertools.product(*choices)
        else:
            chance = random.Random(seed)
            oldest = tuple(options[0] for options in choices)
            rest = (tuple(map(chance.choice, choices)) for _ in range(limit - 1))
            picks = itertools.chain([oldest], rest)
        for pick in picks:
            names = dict(zip(paths, pick[: len(paths)], strict=True))
            contents = dict(zip(self._files, pick[len(paths) :], strict=True))
            yield self._image(names, contents)  # type: ignore[arg-type]

    def _image(self, names: dict[str, int | None], contents: dict[int, bytes]) -> Image:
        there: Names = {}
        for path, file in sorted(names.items()):
            if file is not None and (_folder_of(path) == "." or _folder_of(path) in there):
                there[path] = file
        used = {file: contents[file] for file in there.values() if file != FOLDER}
        return Image(there, used, self._catalog)

    def _file(self, path: str) -> int | None:
        return self._names[path][-1] if path in self._names else None

    def _open(self, path: str) -> int:
        """Return the file that was opened at `path`, whether or not it still has that name."""
        for file in reversed(self._names[path]):
            if file is not None:
                return file
        raise AssertionError(f"nothing was ever at {path}")

    def _before(self, path: str) -> int | None:
        return self._names[path][-2] if len(self._names[path]) > 1 else None

    def _set(self, path: str, file: int | None) -> None:
        self._names.setdefault(path, [None]).append(file)


def _folder_of(path: str) -> str:
    return str(PurePosixPath(path).parent)


def torn(op: Op) -> Iterator[Op]:
    """Yield what is done of a write that is cut off in the middle."""
    length = len(op.data)
    for size in sorted({1, length // 2, length - 1}):
        if 0 < size < length:
            yield replace(op, data=op.data[:size])
