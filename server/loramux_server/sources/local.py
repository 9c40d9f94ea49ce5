"""Adapters in a local folder, such as a network file system that all servers mount."""

import stat
from collections.abc import Iterator, Mapping
from pathlib import Path

from loramux_server.sources.snapshot import (
    OPTIONAL,
    PACKAGE_SUFFIX,
    REQUIRED,
    changed,
    not_found,
    unavailable,
)

CHUNK_BYTES = 1 << 20


class LocalFiles:
    """One package, or the files of a PEFT folder."""

    def __init__(self, path: Path) -> None:
        """List the files at `path`.

        Raises:
            NotFoundError: There is no adapter.
            UnavailableError: It cannot be accessed.
        """
        self.origin = str(path)
        if path.name.endswith(PACKAGE_SUFFIX):
            self._files = {path.name: path}
        else:
            self._files = {name: path / name for name in (*REQUIRED, *OPTIONAL)}
        sizes: dict[str, int] = {}
        for name, file in self._files.items():
            try:
                state = file.stat()
            except (FileNotFoundError, NotADirectoryError):
                if name not in OPTIONAL:
                    raise not_found(self.origin, f"there is no {name}") from None
            except OSError as error:
                raise unavailable(self.origin, error.strerror or "it cannot be read") from error
            else:
                if not stat.S_ISREG(state.st_mode):  # a pipe might never end
                    raise not_found(self.origin, f"{name} is not a file")
                sizes[name] = state.st_size
        self.sizes: Mapping[str, int] = sizes

    def read(self, name: str) -> Iterator[bytes]:
        """Yield the chunks of a file; see `Snapshot.read`."""
        try:
            with self._files[name].open("rb") as file:
                while chunk := file.read(CHUNK_BYTES):
                    yield chunk
        except FileNotFoundError:
            raise changed(self.origin) from None
        except OSError as error:
            raise unavailable(self.origin, error.strerror or "it cannot be read") from error
