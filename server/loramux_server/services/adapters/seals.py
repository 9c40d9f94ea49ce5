"""Seals (BLAKE3 hashes of packages) that the engine computed, on their way to the catalog."""

import logging
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor

from loramux.errors import LoramuxError
from loramux_server.services.adapters.storage import storage_errors
from loramux_server.store.registry import Registry
from loramux_server.wire.messages import Report

_log = logging.getLogger(__name__)


class FoundSeals:
    """Saves them for the next engine, in a thread, so that reports do not wait for the disk."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="seals")
        self._is_closed = False

    def report(self, report: Report) -> None:
        """Process the report of one engine step."""
        if report.seals and not self._is_closed:
            self._writer.submit(self._keep, report.seals)

    def close(self) -> None:
        """Wait until all reported seals are saved; later ones are ignored."""
        self._is_closed = True
        self._writer.shutdown()

    def _keep(self, seals: Mapping[str, str]) -> None:
        try:
            with storage_errors():
                self._registry.keep_seals(seals)
        except LoramuxError as error:  # the next engine computes them again
            _log.warning("cannot store the seals of %d adapters: %s", len(seals), error)
