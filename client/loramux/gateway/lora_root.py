"""The folder of this machine below which callers may name adapters by path."""

import os
from collections.abc import Iterator
from pathlib import Path

from loramux.errors import InvalidArgumentError, NotFoundError
from loramux.gateway.refusal import invalid


class LoraRoot:
    """Finds what a path names, and nothing that lies elsewhere."""

    def __init__(self, folder: Path) -> None:
        """Allow what is below `folder`.

        Raises:
            InvalidArgumentError: It is no folder.
        """
        self._folder = _followed(folder)
        if not self._folder.is_dir():
            raise InvalidArgumentError(f"--lora-path-root is {str(folder)!r}; expected a folder")

    def find(self, path: str) -> Path:
        """Return where what `path` names is, which is absolute or begins at the folder. Blocks.

        Links are followed. They have to end below the folder: those on the way, those in a folder
        that is named, and those in the folders in it, which is as deep as files of adapters lie.

        Raises:
            InvalidArgumentError: It is not below the folder, or something in it is not.
            NotFoundError: There is nothing that can be read.
            PermissionError: A folder cannot be read.
        """
        try:
            found = _followed(self._folder / path)
        except ValueError:  # such as a zero byte
            raise invalid("lora_path", f"lora_path is {path!r}, which is no path") from None
        if not self._has(found):
            raise invalid(
                "lora_path",
                f"lora_path is {path!r}; expected a path below --lora-path-root of the gateway, or "
                "a URI that begins with hf://, s3://, gs://, az:// or oci://",
            )
        try:
            found.stat()
        except OSError:
            raise NotFoundError(
                f"lora_path is {path!r}, where nothing can be read; on the hub it would be "
                "hf://ORG/NAME",
                reason="SOURCE_NOT_FOUND",
                field="lora_path",
            ) from None
        for inner in _inside(found):
            if inner.is_symlink() and not self._has(_followed(inner)):
                raise invalid(
                    "lora_path",
                    f"lora_path is {path!r}, in which {str(inner.relative_to(found))!r} leads out "
                    "of --lora-path-root of the gateway",
                )
        return found

    def _has(self, path: Path) -> bool:
        return self._folder in path.parents


def _followed(path: Path) -> Path:
    """Return `path` without links, as far as they can be followed."""
    return Path(os.path.realpath(path))


def _inside(folder: Path) -> Iterator[Path]:
    """Yield what is in `folder`, and what is in the folders in it."""
    for entry in _entries(folder):
        yield entry
        yield from _entries(entry)


def _entries(folder: Path) -> Iterator[Path]:
    """Yield what is in `folder`; nothing if it is none."""
    if folder.is_dir():
        yield from folder.iterdir()
