"""Seals that the engine found out of files, on their way to the catalog."""

import logging
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor

from loramux.errors import LoramuxError
from loramux_server.services.adapters.storage import storage_errors
from loramux_server.store.registry import Registry
from loramux_server.wire.messages import Report

_log = logging.getLogger(__name__)


class FoundSeals:
    """Keeps them, so that the next engine begins with them; no report waits for the disk."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="seals")
        self._is_closed = False

    def report(self, report: Report) -> None:
        """Take in what one step of the engine had to tell."""
        if report.seals and not self._is_closed:
            self._writer.submit(self._keep, report.seals)

    def close(self) -> None:
        """Wait until what was told is kept; what is told later is not."""
        self._is_closed = True
        self._writer.shutdown()

    def _keep(self, seals: Mapping[str, str]) -> None:
        try:
            with storage_errors():
                self._registry.keep_seals(seals)
        except LoramuxError as error:  # the next engine finds them again
            _log.warning("seals of %d adapters are not kept: %s", len(seals), error)
