"""The audit log: who changed what, when, and with which outcome."""

import asyncio
import json
import logging
import os
import threading
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

from loramux._json_lines import now
from loramux_server.tasks import finished

_log = logging.getLogger("loramux.audit")


class AuditFile:
    """An append-only file with a line for each action.

    After the file is moved away, as by logrotate, the next line goes to a new file.
    """

    def __init__(self, path: str) -> None:
        """Open the file; a new one is readable by its owner only.

        Raises:
            OSError: It cannot be written.
        """
        self._path = path
        self._descriptor = self._open()
        self._lock = threading.Lock()

    def append(self, act: Mapping[str, object]) -> None:
        """Append a line, and return once it is synced to disk.

        Raises:
            OSError: It cannot be written.
        """
        line = (json.dumps(act) + "\n").encode()
        with self._lock:
            self._follow()
            # A single write, so that lines stay intact if several servers share the file.
            if os.write(self._descriptor, line) != len(line):
                raise OSError("the line was only partly written")
            os.fsync(self._descriptor)

    def close(self) -> None:
        """Close the file."""
        os.close(self._descriptor)

    def _follow(self) -> None:
        """Reopen the path if it is another file now, or missing."""
        try:
            if os.path.samestat(os.stat(self._path), os.fstat(self._descriptor)):  # noqa: PTH116
                return
        except FileNotFoundError:
            pass
        try:
            new = self._open()
        except OSError as error:  # keep the old file, so that no line is lost
            _log.error("cannot open the new audit log, keeping the old one: %s", error.strerror)
            return
        os.close(self._descriptor)
        self._descriptor = new

    def _open(self) -> int:
        return os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)


class Audit:
    """Writes actions to the log, and to the audit file if there is one."""

    def __init__(self, file: AuditFile | None = None) -> None:
        self._file = file
        self._thread = ThreadPoolExecutor(1, "audit") if file else None

    async def record(self, act: str, **fields: object) -> None:
        """Write an action, and return once it is on disk, even if cancelled meanwhile."""
        if writing := self.begin(act, **fields):
            await finished(writing)

    def begin(self, act: str, **fields: object) -> "asyncio.Future[None] | None":
        """Start writing an action; return a future of its end, or None if there is no file."""
        entry = {"time": now(), "act": act, **fields}
        _log_entry(entry, logging.INFO)
        if self._file is None:
            return None
        loop = asyncio.get_running_loop()
        return loop.run_in_executor(self._thread, self._append, entry)

    def write(self, act: str, *, level: int = logging.INFO, **fields: object) -> None:
        """Write an action of the server itself; blocks until it is on disk.

        `level` is for the log; the audit file gets every action.
        """
        entry = {"time": now(), "act": act, "by": "server", **fields}
        _log_entry(entry, level)
        if self._file:
            self._append(entry)

    def close(self) -> None:
        """Finish pending writes, and close the file."""
        if self._thread:
            self._thread.shutdown()
        if self._file:
            self._file.close()

    def _append(self, entry: Mapping[str, object]) -> None:
        assert self._file is not None
        try:
            self._file.append(entry)
        except OSError as error:  # the action has been done: an error to the caller would mislead
            _log.error("cannot write the line above to the audit log: %s", error.strerror or error)


@contextmanager
def audited(path: str | None, act: str, **fields: object) -> Iterator[dict[str, object]]:
    """Write the action of the block and its outcome to the file at `path`, unless that is None.

    Yields the fields of the entry, to which the block may add.

    Raises:
        OSError: The file cannot be opened, in which case the block does not run, or be written.
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


def _log_entry(entry: Mapping[str, object], level: int) -> None:
    line = " ".join(f"{name}={value}" for name, value in entry.items() if name != "time")
    _log.log(level, "audit: %s", ascii(line)[1:-1], extra={"fields": {"audit": entry}})
