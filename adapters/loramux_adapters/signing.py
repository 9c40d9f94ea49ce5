"""Signatures of packages. Needs cryptography, from the extra `sign`.

An Ed25519 signature (RFC 8032) covers the manifest, which has the digest of each tensor. It is
stored in the manifest, so it travels with the package, and signing makes another package with
another digest. Keys are PEM files like those of `openssl genpkey -algorithm ed25519`.
"""

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import BinaryIO

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
    load_pem_public_key,
)

from loramux_adapters.digests import check_digests, tensor_digests
from loramux_adapters.errors import PackageError, shown
from loramux_adapters.manifest import manifest_text
from loramux_adapters.package import Package
from loramux_adapters.packing import Output, stored, write_package
from loramux_adapters.tensorfile import tensor_reader

ALGORITHM = "ed25519"
PUBLIC_ENDING = ".pub"
SIGNATURE_BYTES = 64
MAX_KEY_BYTES = 1 << 16
_CONTEXT = b"loramux package, manifest version 1\n"
"""Prefix of what is signed, so that a signature made for another purpose is not valid here."""


def new_key(path: Path) -> str:
    """Write a new private key to `path`, readable by its owner only, and the public key beside it.

    Returns the public key as hexadecimal digits.

    Raises:
        FileExistsError: One of the files exists: a key is never overwritten.
    """
    key = Ed25519PrivateKey.generate()
    public = path.with_name(path.name + PUBLIC_ENDING)
    if public.exists():
        raise FileExistsError(f"{public} exists already; keys are not overwritten")
    private_pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL
    try:
        with os.fdopen(os.open(path, flags, 0o600), "wb") as file:
            file.write(private_pem)
    except FileExistsError:
        raise FileExistsError(f"{path} exists already; keys are not overwritten") from None
    pem = key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    with public.open("xb") as file:
        file.write(pem)
    return _hex(key.public_key())


def sign(file: BinaryIO, package: Package, key: Path, output: Output) -> str:
    """Write `package`, which is open as `file`, to `output`, signed with the private `key`.

    Returns the public key as hexadecimal digits. Equal input gives equal bytes.

    Raises:
        PackageError: `key` is not an Ed25519 private key.
    """
    private = _private_key(key)
    read = tensor_reader(file, package.file.data_start)
    public = _hex(private.public_key())
    signature = {"algorithm": ALGORITHM, "public_key": public, "value": "0" * 2 * SIGNATURE_BYTES}
    notes = {**package.notes, "signature": signature}
    form = stored(package.peft_config, package.tensors, notes)
    notes["tensors"] = tensor_digests(form.tensors, form.reader(read))
    signature["value"] = private.sign(_signed(package, notes)).hex()
    write_package(package.peft_config, package.tensors, read, output, notes=notes)
    return public


def read_public_keys(paths: Iterable[Path]) -> dict[str, Ed25519PublicKey]:
    """Return public keys by their hexadecimal digits.

    Raises:
        PackageError: A file has no Ed25519 public key.
        OSError: A file cannot be read.
    """
    return {_hex(key): key for key in map(_public_key, paths)}


def check_signature(file: BinaryIO, package: Package, keys: Mapping[str, Ed25519PublicKey]) -> str:
    """Check that `package`, which is open as `file`, is signed with one of `keys`.

    Returns that key as hexadecimal digits.

    Args:
        file: The bytes of the package.
        package: The parsed package.
        keys: Public keys; see `read_public_keys`.

    Raises:
        PackageError: It is not signed, is signed with another key, or was changed afterwards.
    """
    match package.notes.get("signature"):
        case None:
            raise PackageError("the package is not signed")
        case {"algorithm": str(algorithm), "public_key": str(signer), "value": str(value)}:
            pass
        case malformed:
            raise PackageError(f"the signature {shown(malformed)} is malformed")
    if algorithm != ALGORITHM:
        raise PackageError(f"the signature has algorithm {shown(algorithm)}; expected {ALGORITHM}")
    if signer not in keys:
        raise PackageError(
            f"the package is signed with key {shown(signer)}, not {' or '.join(keys)}"
        )
    try:
        keys[signer].verify(bytes.fromhex(value), _signed(package, package.notes))
    except (InvalidSignature, ValueError):
        raise PackageError("the signature does not match: the manifest was changed") from None
    digests = package.notes.get("tensors")
    if not isinstance(digests, dict):
        raise PackageError("the signature covers no tensors: the manifest has no tensor digests")
    check_digests(digests, package.file.tensors, tensor_reader(file, package.file.data_start))
    return signer


def _signed(package: Package, notes: object) -> bytes:
    assert isinstance(notes, dict)
    unsigned = {name: note for name, note in notes.items() if name != "signature"}
    return _CONTEXT + manifest_text(package.peft_config, unsigned).encode()


def _private_key(path: Path) -> Ed25519PrivateKey:
    try:
        key = load_pem_private_key(_read(path), password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        key = None
    if not isinstance(key, Ed25519PrivateKey):
        raise PackageError(
            f"{path} is not an Ed25519 private key in PEM without a password; create one with "
            "loramux sign --new-key",
            "INVALID_FIELD",
        )
    return key


def _public_key(path: Path) -> Ed25519PublicKey:
    try:
        key = load_pem_public_key(_read(path))
    except (ValueError, UnsupportedAlgorithm):
        key = None
    if not isinstance(key, Ed25519PublicKey):
        raise PackageError(f"{path} is not an Ed25519 public key in PEM", "INVALID_FIELD")
    return key


def _read(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(MAX_KEY_BYTES)


def _hex(key: Ed25519PublicKey) -> str:
    return key.public_bytes_raw().hex()
