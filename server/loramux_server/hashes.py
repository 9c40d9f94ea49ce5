"""What tells the bytes of a package from any others: its digest, and its seal.

The digest is a SHA-256, by which everything goes. The seal is a BLAKE3 of bytes that had their
digest: whoever reads them again knows them as surely by it, in less than half of the time.
"""

import hashlib
from typing import Protocol

from blake3 import blake3


class Hash(Protocol):
    """A hash of bytes that come in pieces."""

    def update(self, data: bytes | memoryview, /) -> object:
        """Go on with these bytes."""

    def text(self) -> str:
        """Return what identifies all of them: the name of the hash, a colon, and digits."""


class Digest:
    """The SHA-256."""

    def __init__(self) -> None:
        self._hash = hashlib.sha256()
        self.update = self._hash.update

    def text(self) -> str:
        """Return it as `sha256:…`."""
        return f"sha256:{self._hash.hexdigest()}"


class Seal:
    """The BLAKE3."""

    def __init__(self) -> None:
        self._hash = blake3()
        self.update = self._hash.update

    def text(self) -> str:
        """Return it as `blake3:…`."""
        return f"blake3:{self._hash.hexdigest()}"
