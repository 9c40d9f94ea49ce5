"""PEM files of certificates and their private keys, for clients, the gateway and servers."""

import re
import ssl
from pathlib import Path

SERVER_OPTIONS = ("--tls-cert", "--tls-key")
"""Names of certificate and key in error messages."""
_CLIENT_NAMES = ("certificate", "key of the certificate")
_NAMES_CALLER = re.compile(
    rb"spiffe://[^/\x00-\x20]+/tenant/[^/\x00-\x20]+/role/(?:viewer|user|publisher|admin)"
)
"""SPIFFE id that `--tls-client-domain` maps to a caller; URIs are plain ASCII in DER."""

Stamps = tuple[tuple[int, int, int], ...]
"""Modification time, inode and size of files, to detect changes."""


def stamps(*paths: Path) -> Stamps:
    """Return the state of files; for a file that cannot be inspected it is constant."""
    return tuple(_stamp(path) for path in paths)


def read_pair(certificate: Path, key: Path) -> tuple[bytes, bytes]:
    """Read and validate a client certificate and its key.

    Raises:
        OSError: A file cannot be read; the message names it.
        ValueError: The content cannot be used; the message says which file and why.
    """
    load_pair(ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT), certificate, key, _CLIENT_NAMES)
    return certificate.read_bytes(), key.read_bytes()


def check_names_nobody(option: str, certificate: Path) -> None:
    """Check that a certificate identifies no caller, to whom forwarded calls would be attributed.

    Raises:
        OSError: The file of `option` cannot be read; the message names it.
        ValueError: It has no PEM certificate, or one that identifies a caller; the message says so.
    """
    content = check_certificates(option, certificate).decode("ascii")
    begin, end = "-----BEGIN CERTIFICATE-----", "-----END CERTIFICATE-----"
    own = begin + content.partition(begin)[2].partition(end)[0] + end
    if found := _NAMES_CALLER.search(ssl.PEM_cert_to_DER_cert(own)):
        raise ValueError(
            f"{option} {certificate}: it identifies the caller {found[0].decode()}, and "
            "calls without a key could be attributed to it; use one that identifies no caller"
        )


def load_pair(
    context: ssl.SSLContext,
    certificate: Path,
    key: Path,
    names: tuple[str, str] = SERVER_OPTIONS,
) -> None:
    """Load a certificate into `context`, which is not changed if that fails.

    `names` are the names of the two files in errors.

    Raises:
        OSError: A file cannot be read; the message names it.
        ValueError: The content cannot be used; the message says which file and why.
    """
    check_certificates(names[0], certificate)
    key.read_bytes()  # ssl's error for a missing file does not name it
    for each in (ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), context):
        try:
            each.load_cert_chain(certificate, key, password=_no_password)
        except ssl.SSLError as error:
            if error.reason == "KEY_VALUES_MISMATCH":
                why = f"it does not match the first certificate in {names[0]} {certificate}"
            elif error.reason in (None, "NO_START_LINE", "PEM_LIB"):
                why = "it contains no PEM private key"
            else:
                why = error.reason.lower().replace("_", " ")
            raise ValueError(f"{names[1]} {key}: {why}") from None
        except _EncryptedError:
            raise ValueError(
                f"{names[1]} {key}: the key is encrypted; expected one without a password"
            ) from None


def check_certificates(option: str, path: Path) -> bytes:
    """Return the content of the file that `option` names, which has to have PEM certificates.

    Raises:
        OSError: It cannot be read; the message names it.
        ValueError: It has none; the message names the file.
    """
    content = path.read_bytes()
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_verify_locations(
            cadata=content.decode("ascii")
        )
    except (ssl.SSLError, ValueError):  # ValueError if it is empty or not text
        raise ValueError(f"{option} {path}: it contains no PEM certificate") from None
    return content


def _stamp(path: Path) -> tuple[int, int, int]:
    try:
        state = path.stat()
    except OSError:
        return 0, 0, 0
    return state.st_mtime_ns, state.st_ino, state.st_size


class _EncryptedError(Exception):
    """Raised if the private key needs a password."""


def _no_password() -> str:
    raise _EncryptedError
