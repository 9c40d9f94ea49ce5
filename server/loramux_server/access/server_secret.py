"""The HMAC secret of stored key digests: a file beside the catalog.

Whoever obtains the catalog alone, in a backup or a dump, cannot test keys against it.
"""

import os
import secrets
import stat
from contextlib import suppress
from pathlib import Path

from loramux_server.store.files import Files

SECRET_FILE = "key-secret"
_BYTES = 32


class ServerSecretError(Exception):
    """The file cannot be used; the message says why and what would help."""


def read_secret(folder: Path) -> bytes:
    """Return the secret of the store in `folder`.

    Raises:
        ServerSecretError: The file is missing, damaged, or open to other users of the machine.
    """
    path = folder / SECRET_FILE
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
    except FileNotFoundError:
        raise ServerSecretError(
            f"{path} is missing, and without it no key of the catalog can be verified; restore it, "
            "or revoke all keys and create new ones"
        ) from None
    except OSError as error:
        raise ServerSecretError(f"{path}: {error.strerror}") from None
    with os.fdopen(descriptor, "rb") as file:
        found = os.fstat(file.fileno())
        secret = file.read(_BYTES + 1)
    if not stat.S_ISREG(found.st_mode) or len(secret) != _BYTES:
        raise ServerSecretError(f"{path} is damaged; expected a file of {_BYTES} bytes")
    if found.st_mode & 0o077:
        raise ServerSecretError(
            f"{path} has mode {found.st_mode & 0o777:o}, accessible to other users; set it to 600"
        )
    return secret


def make_secret(folder: Path) -> bytes:
    """Return the secret of the store in `folder`, creating it if there is none.

    Raises:
        ServerSecretError: The existing file cannot be used.
        OSError: It cannot be written.
    """
    path = folder / SECRET_FILE
    if not path.exists():
        partial = folder / f"{SECRET_FILE}.{secrets.token_hex(8)}"
        try:
            descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with os.fdopen(descriptor, "wb") as file:
                file.write(secrets.token_bytes(_BYTES))
                file.flush()
                os.fsync(file.fileno())
            # Linked into place: two processes that create one at once end up with the same.
            with suppress(FileExistsError):
                path.hardlink_to(partial)
        finally:
            partial.unlink(missing_ok=True)
        Files().sync_folder(folder)
    return read_secret(folder)
