"""The certificate of the gateway, whose files may change while it runs."""

import logging
import ssl
from pathlib import Path

from loramux._certificate_files import load_pair, stamps

REFRESH_SECONDS = 1
"""How often the files are looked at."""

_log = logging.getLogger(__name__)


class Certificate:
    """What a context of TLS shows to who connects; `refresh` looks at the files."""

    def __init__(self, certificate: Path, key: Path, context: ssl.SSLContext) -> None:
        """Let `context` show what is in the files, PEM.

        Raises:
            OSError: A file cannot be read; it says which.
            ValueError: They cannot be used; the message says which, and why.
        """
        self._files = certificate, key
        self._context = context
        self._stamps = stamps(*self._files)
        load_pair(context, *self._files)

    async def refresh(self) -> None:
        """Take in files that changed; what cannot be used is left, and said once."""
        found = stamps(*self._files)
        if found == self._stamps:
            return
        self._stamps = found
        try:
            load_pair(self._context, *self._files)
        except (OSError, ValueError) as error:
            _log.warning("cannot reload the certificate, keeping the current one: %s", error)
