"""The folder on this machine below which callers may name adapters by path."""

import os
from collections.abc import Iterator
from pathlib import Path

from loramux.errors import InvalidArgumentError, NotFoundError
from loramux.gateway.refusal import invalid


class LoraRoot:
    """Resolves paths, and refuses those that lead out of the folder."""

    def __init__(self, folder: Path) -> None:
        """Allow paths below `folder`.

        Raises:
            InvalidArgumentError: It is not a folder.
        """
        self._folder = _followed(folder)
        if not self._folder.is_dir():
            raise InvalidArgumentError(f"--lora-path-root is {str(folder)!r}; expected a folder")

    def find(self, path: str) -> Path:
        """Return `path`, absolute or relative to the folder, with symlinks resolved. Blocks.

        Symlinks must lead to paths below the folder: those in `path` itself, in the folder that it
        names, and in that folder's subfolders; files of adapters lie no deeper.

        Raises:
            InvalidArgumentError: It, or a symlink in it, leads out of the folder.
            NotFoundError: It does not exist or cannot be accessed.
            PermissionError: A folder cannot be read.
        """
        try:
            found = _followed(self._folder / path)
        except ValueError:  # such as a null byte
            raise invalid(
                "lora_path", f"lora_path is {path!r}, which is not a valid path"
            ) from None
        if not self._has(found):
            raise invalid(
                "lora_path",
                f"lora_path is {path!r}; expected a path below the gateway's --lora-path-root, or "
                "a URI with hf://, s3://, gs://, az:// or oci://",
            )
        try:
            found.stat()
        except OSError:
            raise NotFoundError(
                f"lora_path is {path!r}, which does not exist or cannot be read; for the Hub, "
                "use hf://ORG/NAME",
                reason="SOURCE_NOT_FOUND",
                field="lora_path",
            ) from None
        for inner in _inside(found):
            if inner.is_symlink() and not self._has(_followed(inner)):
                raise invalid(
                    "lora_path",
                    f"lora_path is {path!r}, in which {str(inner.relative_to(found))!r} links to a "
                    "path outside the gateway's --lora-path-root",
                )
        return found

    def _has(self, path: Path) -> bool:
        return self._folder in path.parents


def _followed(path: Path) -> Path:
    """Return `path` with symlinks resolved, as far as possible."""
    return Path(os.path.realpath(path))


def _inside(folder: Path) -> Iterator[Path]:
    """Yield the entries of `folder` and of its subfolders."""
    for entry in _entries(folder):
        yield entry
        yield from _entries(entry)


def _entries(folder: Path) -> Iterator[Path]:
    """Yield the entries of `folder`; nothing if it is not a folder."""
    if folder.is_dir():
        yield from folder.iterdir()
