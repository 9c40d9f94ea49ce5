"""Files of a certificate and its key, PEM, as servers are given them by `--tls-cert` and such."""

import re
import ssl
from pathlib import Path

SERVER_OPTIONS = ("--tls-cert", "--tls-key")
"""What errors call a certificate and its key."""
_CLIENT_NAMES = ("certificate", "key of the certificate")
_NAMES_CALLER = re.compile(
    rb"spiffe://[^/\x00-\x20]+/tenant/[^/\x00-\x20]+/role/(?:viewer|user|publisher|admin)"
)
"""What a server with --tls-client-domain takes for a caller; URIs are plain in DER."""

Stamps = tuple[tuple[int, int, int], ...]
"""The state of files, as far as it says whether they were changed."""


def stamps(*paths: Path) -> Stamps:
    """Return the state that files are in; of one that cannot be looked at it is always the same."""
    return tuple(_stamp(path) for path in paths)


def read_pair(certificate: Path, key: Path) -> tuple[bytes, bytes]:
    """Return a client's certificate and its key, as they are in the files.

    Raises:
        OSError: A file cannot be read; it says which.
        ValueError: What is in them cannot be used; the message says which, and why.
    """
    load_pair(ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT), certificate, key, _CLIENT_NAMES)
    return certificate.read_bytes(), key.read_bytes()


def check_names_nobody(option: str, certificate: Path) -> None:
    """Demand that calls made for others cannot be taken for calls of a certificate's owner.

    Raises:
        OSError: The file of `option` cannot be read; it says so.
        ValueError: It holds no certificate in PEM, or one that names a caller; the message says so.
    """
    content = check_certificates(option, certificate).decode("ascii")
    begin, end = "-----BEGIN CERTIFICATE-----", "-----END CERTIFICATE-----"
    own = begin + content.partition(begin)[2].partition(end)[0] + end
    if found := _NAMES_CALLER.search(ssl.PEM_cert_to_DER_cert(own)):
        raise ValueError(
            f"{option} {certificate}: it names the caller {found[0].decode()}, for whom a server "
            "could take everyone who shows no key; use a certificate without such a name"
        )


def load_pair(
    context: ssl.SSLContext,
    certificate: Path,
    key: Path,
    names: tuple[str, str] = SERVER_OPTIONS,
) -> None:
    """Let `context` show a certificate; it stays as it was if that is wrong.

    `names` are what errors call the two files.

    Raises:
        OSError: A file cannot be read; it says which.
        ValueError: What is in them cannot be used; the message says which, and why.
    """
    check_certificates(names[0], certificate)
    key.read_bytes()  # what ssl says of a file that is not there does not name it
    for each in (ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), context):
        try:
            each.load_cert_chain(certificate, key, password=_no_password)
        except ssl.SSLError as error:
            if error.reason == "KEY_VALUES_MISMATCH":
                why = f"it is not the key of the first certificate in {names[0]} {certificate}"
            elif error.reason in (None, "NO_START_LINE", "PEM_LIB"):
                why = "it holds no private key in PEM"
            else:
                why = error.reason.lower().replace("_", " ")
            raise ValueError(f"{names[1]} {key}: {why}") from None
        except _EncryptedError:
            raise ValueError(
                f"{names[1]} {key}: the key is encrypted; there is nobody to ask for the password"
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
