"""Requiring packages to be signed by a trusted key: `--trusted-signer`."""

import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

from loramux_adapters import PackageError
from loramux_adapters.extras import install_command
from loramux_adapters.package import Package


class TrustedSigners:
    """The public keys of trusted signers; with none, packages need no signature."""

    def __init__(self, paths: Sequence[Path] = ()) -> None:
        """Read keys from PEM files, as written by `loramux sign --new-key`.

        Raises:
            ValueError: A file contains no public key, or `cryptography` is not installed; the
                message says which.
            OSError: A file cannot be read.
        """
        if not paths:
            self._keys = {}
            return
        if not importlib.util.find_spec("cryptography"):
            raise ValueError(f"cryptography is needed: {install_command('sign')}")
        from loramux_adapters.signing import read_public_keys

        self._keys = read_public_keys(paths)

    def check(self, file: BinaryIO, package: Package) -> None:
        """Demand that `package`, open as `file`, is signed by one of them. Reads the whole file.

        Raises:
            PackageError: It is not.
        """
        if not self._keys:
            return
        from loramux_adapters.signing import check_signature

        try:
            check_signature(file, package, self._keys)
        except PackageError as error:
            raise PackageError(
                f"{error}; this server accepts only packages signed by one of its --trusted-signer "
                "(loramux sign)",
                "SIGNATURE_REQUIRED",
            ) from None


ANYBODY = TrustedSigners()
"""Requires no signature."""
