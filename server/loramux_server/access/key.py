"""API keys as text: `lmx_<id>_<secret>`. The secret is shown once and kept nowhere."""

import hashlib
import hmac
import re
import secrets
import string
from dataclasses import dataclass

ID_LENGTH = 12
SECRET_LENGTH = 43
"""Letters and digits with 256 bits between them."""

_ID_LETTERS = string.ascii_lowercase + string.digits
_SECRET_LETTERS = string.ascii_letters + string.digits
# One spelling for each key: nothing is trimmed, folded or decoded.
_FORM = re.compile(rf"lmx_([a-z0-9]{{{ID_LENGTH}}})_[A-Za-z0-9]{{{SECRET_LENGTH}}}", re.ASCII)


@dataclass(frozen=True, slots=True)
class Key:
    """A key that somebody showed, not yet known to be good."""

    id: str
    """Names the key where the secret must not appear."""
    text: str

    @property
    def sha256(self) -> str:
        """The hexadecimal SHA-256 of its text, by which files list it."""
        return hashlib.sha256(self.text.encode("ascii")).hexdigest()

    def __repr__(self) -> str:
        return f"Key({self.id!r})"  # so that no log can hold more


def new_key() -> Key:
    """Return a key that nobody has."""
    key_id = "".join(secrets.choice(_ID_LETTERS) for _ in range(ID_LENGTH))
    secret = "".join(secrets.choice(_SECRET_LETTERS) for _ in range(SECRET_LENGTH))
    return Key(key_id, f"lmx_{key_id}_{secret}")


def parse_key(text: str) -> Key | None:
    """Return `text` as a key, or None if it is built otherwise."""
    found = _FORM.fullmatch(text)
    return Key(found[1], text) if found else None


def key_digest(key: Key, server_secret: bytes) -> bytes:
    """Return the 32 bytes that stand for `key` in the catalog: HMAC-SHA-256 of all of its text.

    A slow hash would protect guessable passwords. These are random, and it would let strangers
    keep the server busy.
    """
    return hmac.digest(server_secret, key.text.encode("ascii"), "sha256")
