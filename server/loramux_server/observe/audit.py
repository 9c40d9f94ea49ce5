"""The audit log: who changed what, when, and what came of it."""

import asyncio
import json
import logging
import os
import threading
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

from loramux._json_lines import now

_log = logging.getLogger("loramux.audit")


class AuditFile:
    """A file that gets a line for each act, and only ever grows.

    Once another program has moved it away, as logrotate does, the next line begins a new one.
    """

    def __init__(self, path: str) -> None:
        """Open it, made if it is not there, for its owner only.

        Raises:
            OSError: It cannot be written.
        """
        self._path = path
        self._descriptor = self._open()
        self._lock = threading.Lock()

    def append(self, act: Mapping[str, object]) -> None:
        """Add a line, and return when the disk has it.

        Raises:
            OSError: It cannot be written.
        """
        line = (json.dumps(act) + "\n").encode()
        with self._lock:
            self._follow()
            # One write: several servers may share the file, and lines stay whole.
            if os.write(self._descriptor, line) != len(line):
                raise OSError("only a part of the line could be written")
            os.fsync(self._descriptor)

    def close(self) -> None:
        """Close it."""
        os.close(self._descriptor)

    def _follow(self) -> None:
        """Open the path again if another file is there, or none."""
        try:
            if os.path.samestat(os.stat(self._path), os.fstat(self._descriptor)):  # noqa: PTH116
                return
        except FileNotFoundError:
            pass
        try:
            new = self._open()
        except OSError as error:  # no line is lost where there is a file for it
            _log.error(
                "the old audit log is used, as the new one cannot be opened: %s", error.strerror
            )
            return
        os.close(self._descriptor)
        self._descriptor = new

    def _open(self) -> int:
        return os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)


class Audit:
    """Writes acts to the log, and to the audit file if there is one."""

    def __init__(self, file: AuditFile | None = None) -> None:
        self._file = file
        self._thread = ThreadPoolExecutor(1, "audit") if file else None

    async def tell(self, act: str, **fields: object) -> None:
        """Write down an act; when this returns, it lasts. A caller that is cancelled waits, too."""
        writing = self.begin(act, **fields)
        if writing is None:
            return
        try:
            await asyncio.shield(writing)
        except asyncio.CancelledError:
            await asyncio.wait([writing])
            raise

    def begin(self, act: str, **fields: object) -> "asyncio.Future[None] | None":
        """Write down an act; return what ends when the disk has it, or None without a file."""
        entry = {"time": now(), "act": act, **fields}
        _say(entry, logging.INFO)
        if self._file is None:
            return None
        loop = asyncio.get_running_loop()
        return loop.run_in_executor(self._thread, self._append, entry)

    def write(self, act: str, *, level: int = logging.INFO, **fields: object) -> None:
        """Write down what the server did by itself; blocks until the disk has it.

        The log gets it at `level`, the audit file in any case.
        """
        entry = {"time": now(), "act": act, "by": "server", **fields}
        _say(entry, level)
        if self._file:
            self._append(entry)

    def close(self) -> None:
        """Write what is begun, and close the file."""
        if self._thread:
            self._thread.shutdown()
        if self._file:
            self._file.close()

    def _append(self, entry: Mapping[str, object]) -> None:
        assert self._file is not None
        try:
            self._file.append(entry)
        except OSError as error:  # the act is done: to refuse it would be a lie
            _log.error("cannot write the line above to the audit log: %s", error.strerror or error)


@contextmanager
def audited(path: str | None, act: str, **fields: object) -> Iterator[dict[str, object]]:
    """Write down the act of the block and how it ended, in the file at `path` if there is one.

    The block may add to what is told. A file that cannot be opened ends it before it begins.

    Raises:
        OSError: The file cannot be written.
    """
    if path is None:
        yield fields
        return
    file = AuditFile(path)
    try:
        try:
            yield fields
        except BaseException:
            file.append({"time": now(), "act": act, **fields, "outcome": "failed"})
            raise
        file.append({"time": now(), "act": act, **fields, "outcome": "ok"})
    finally:
        file.close()


def _say(entry: Mapping[str, object], level: int) -> None:
    told = " ".join(f"{name}={value}" for name, value in entry.items() if name != "time")
    _log.log(level, "audit: %s", ascii(told)[1:-1], extra={"fields": {"audit": entry}})
