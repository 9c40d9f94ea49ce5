"""The gateway's TLS certificate, reloaded when its files change."""

import logging
import ssl
from pathlib import Path

from loramux._certificate_files import load_pair, stamps

REFRESH_SECONDS = 1
"""Interval at which the files are checked."""

_log = logging.getLogger(__name__)


class Certificate:
    """The certificate of a TLS context; `refresh` reloads changed files."""

    def __init__(self, certificate: Path, key: Path, context: ssl.SSLContext) -> None:
        """Load the PEM files into `context`.

        Raises:
            OSError: A file cannot be read; the error names it.
            ValueError: The files cannot be used; the message says which, and why.
        """
        self._files = certificate, key
        self._context = context
        self._stamps = stamps(*self._files)
        load_pair(context, *self._files)

    async def refresh(self) -> None:
        """Load the files if they changed; if they cannot be used, keep the old and warn once."""
        found = stamps(*self._files)
        if found == self._stamps:
            return
        self._stamps = found
        try:
            load_pair(self._context, *self._files)
        except (OSError, ValueError) as error:
            _log.warning("cannot reload the certificate, keeping the current one: %s", error)
