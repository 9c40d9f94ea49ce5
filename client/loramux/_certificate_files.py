"""Files of a certificate and its key, PEM, as servers are given them by `--tls-cert` and such."""

import ssl
from pathlib import Path

Stamps = tuple[tuple[int, int, int], ...]
"""The state of files, as far as it says whether they were changed."""


def stamps(*paths: Path) -> Stamps:
    """Return the state that files are in; of one that cannot be looked at it is always the same."""
    return tuple(_stamp(path) for path in paths)


def load_pair(context: ssl.SSLContext, certificate: Path, key: Path) -> None:
    """Let `context` show a certificate; it stays as it was if that is wrong.

    Raises:
        OSError: A file cannot be read; it says which.
        ValueError: What is in them cannot be used; the message says which, and why.
    """
    check_certificates("--tls-cert", certificate)
    key.read_bytes()  # what ssl says of a file that is not there does not name it
    for each in (ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), context):
        try:
            each.load_cert_chain(certificate, key, password=_no_password)
        except ssl.SSLError as error:
            if error.reason == "KEY_VALUES_MISMATCH":
                why = f"it is not the key of the first certificate in --tls-cert {certificate}"
            elif error.reason in (None, "NO_START_LINE", "PEM_LIB"):
                why = "it holds no private key in PEM"
            else:
                why = error.reason.lower().replace("_", " ")
            raise ValueError(f"--tls-key {key}: {why}") from None
        except _EncryptedError:
            raise ValueError(
                f"--tls-key {key}: the key is encrypted; a server has nobody to ask for the "
                "password"
            ) from None


def check_certificates(option: str, path: Path) -> bytes:
    """Return the content of the file that `option` names, if it holds certificates in PEM.

    Raises:
        OSError: It cannot be read; it says so.
        ValueError: It holds none; the message says which file.
    """
    content = path.read_bytes()
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_verify_locations(
            cadata=content.decode("ascii")
        )
    except (ssl.SSLError, ValueError):  # the latter where it is empty, or no text
        raise ValueError(f"{option} {path}: it holds no certificate in PEM") from None
    return content


def _stamp(path: Path) -> tuple[int, int, int]:
    try:
        state = path.stat()
    except OSError:
        return 0, 0, 0
    return state.st_mtime_ns, state.st_ino, state.st_size


class _EncryptedError(Exception):
    """There is a password."""


def _no_password() -> str:
    raise _EncryptedError
