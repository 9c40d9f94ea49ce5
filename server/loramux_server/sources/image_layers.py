"""The layers of an image, one on top of the other.

A layer deletes files of those below by whiteouts, which are empty files: `.wh.NAME` deletes NAME,
`.wh..wh..opq` all that its folder had
(https://github.com/opencontainers/image-spec/blob/main/layer.md#whiteouts).
"""

from typing import Generic, TypeVar

_WHITEOUT, _OPAQUE = ".wh.", ".wh..wh..opq"
_HERE = "/"
"""In a tree of folders, says that all of it is deleted. No file is called that."""

T = TypeVar("T")
_Tree = dict[str, "_Tree"]
"""Folders and files by name; so a long path costs no more than its length."""


class Layers(Generic[T]):
    """The files of all layers, added from the uppermost to the lowest."""

    def __init__(self) -> None:
        self.files: dict[str, T] = {}
        """By path, without those that a layer above deletes or replaces."""
        self._deleted: _Tree = {}

    def add_below(self, files: dict[str, T]) -> None:
        """Add the files of the next layer, by path; of a path in two spellings the last counts."""
        whiteouts = []
        for path, file in reversed(files.items()):
            folder, slash, name = path.removeprefix("./").lstrip("/").rpartition("/")
            if name == _OPAQUE:
                whiteouts.append(folder)
            elif name.startswith(_WHITEOUT):
                whiteouts.append(folder + slash + name.removeprefix(_WHITEOUT))
            elif not self._is_deleted(folder + slash + name):
                self.files.setdefault(folder + slash + name, file)
        for path in whiteouts:  # of what is below only
            tree = self._deleted
            for part in path.split("/") if path else ():
                tree = tree.setdefault(part, {})
            tree[_HERE] = {}

    def _is_deleted(self, path: str) -> bool:
        tree = self._deleted
        for part in path.split("/"):
            if _HERE in tree:
                return True
            if part not in tree:
                return False
            tree = tree[part]
        return _HERE in tree
