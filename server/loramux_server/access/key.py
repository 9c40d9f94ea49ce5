"""API keys as text: `lmx_<id>_<secret>`. The secret is shown once and never stored."""

import hashlib
import hmac
import re
import secrets
import string
from dataclasses import dataclass

ID_LENGTH = 12
SECRET_LENGTH = 43
"""Letters and digits, 256 bits in all."""

_ID_LETTERS = string.ascii_lowercase + string.digits
_SECRET_LETTERS = string.ascii_letters + string.digits
# Each key has exactly one spelling: no trimming, case folding or decoding.
_FORM = re.compile(rf"lmx_([a-z0-9]{{{ID_LENGTH}}})_[A-Za-z0-9]{{{SECRET_LENGTH}}}", re.ASCII)


@dataclass(frozen=True, slots=True)
class Key:
    """A key as presented, not yet checked."""

    id: str
    """Identifies the key where the secret must not appear."""
    text: str

    @property
    def sha256(self) -> str:
        """The hexadecimal SHA-256 of its text, as in access files."""
        return hashlib.sha256(self.text.encode("ascii")).hexdigest()

    def __repr__(self) -> str:
        return f"Key({self.id!r})"  # keeps the secret out of logs


def new_key() -> Key:
    """Return a new random key."""
    key_id = "".join(secrets.choice(_ID_LETTERS) for _ in range(ID_LENGTH))
    secret = "".join(secrets.choice(_SECRET_LETTERS) for _ in range(SECRET_LENGTH))
    return Key(key_id, f"lmx_{key_id}_{secret}")


def parse_key(text: str) -> Key | None:
    """Return `text` as a key, or None if it does not have the format of one."""
    found = _FORM.fullmatch(text)
    return Key(found[1], text) if found else None


def key_digest(key: Key, server_secret: bytes) -> bytes:
    """Return the digest of `key` in the catalog, 32 bytes: the HMAC-SHA-256 of its whole text.

    A slow hash protects guessable passwords. Keys are random, and a slow hash would let
    unauthenticated callers keep the server busy.
    """
    return hmac.digest(server_secret, key.text.encode("ascii"), "sha256")
