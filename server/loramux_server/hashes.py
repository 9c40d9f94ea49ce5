"""The two hashes of a package's bytes: its digest and its seal.

The digest is a SHA-256 and identifies the package everywhere. The seal is a BLAKE3 hash of bytes
whose digest was verified: it verifies later reads as reliably in less than half the time.
"""

import hashlib
from typing import Protocol

from blake3 import blake3


class Hash(Protocol):
    """An incremental hash."""

    def update(self, data: bytes | memoryview, /) -> object:
        """Hash more bytes."""

    def text(self) -> str:
        """Return the hash of all bytes so far as `name:hex digits`."""


class Digest:
    """A SHA-256 hash."""

    def __init__(self) -> None:
        self._hash = hashlib.sha256()
        self.update = self._hash.update

    def text(self) -> str:
        """Return it as `sha256:…`."""
        return f"sha256:{self._hash.hexdigest()}"


class Seal:
    """A BLAKE3 hash."""

    def __init__(self) -> None:
        self._hash = blake3()
        self.update = self._hash.update

    def text(self) -> str:
        """Return it as `blake3:…`."""
        return f"blake3:{self._hash.hexdigest()}"
