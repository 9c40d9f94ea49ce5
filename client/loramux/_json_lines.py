"""Logging as JSON Lines, without paths and without messages of exceptions."""

import datetime
import json
import logging
import os
import re
import traceback

_VARIABLE = "LORAMUX_LOG_FORMAT"
"""Passes the log format on to child processes."""
_FOLDERS = re.compile(r"(?<![\w.:/])/(?:[^\s/'\":]+/)*(?=[^\s/'\":])")
_ADDRESS = re.compile(r"\b0x[0-9a-fA-F]{4,}\b")


def set_up_logging(process: str = "", log_format: str | None = None) -> None:
    """Log to standard error, in this process and its child processes.

    Args:
        process: Name of this process in the log; empty for the frontend.
        log_format: `text` or `json`; None for the format of the parent process.
    """
    if log_format is None:
        log_format = os.environ.get(_VARIABLE, "text")
    os.environ[_VARIABLE] = log_format
    handler = logging.StreamHandler()
    if log_format == "json":
        handler.setFormatter(JsonLines(process or "frontend"))
    else:
        name = f"{process} " if process else ""
        handler.setFormatter(logging.Formatter(f"%(asctime)s {name}%(levelname)s %(message)s"))
    logging.basicConfig(level=logging.INFO, handlers=[handler])


class JsonLines(logging.Formatter):
    """Formats each record as a JSON object; `extra={"fields": …}` adds keys."""

    def __init__(self, process: str) -> None:
        super().__init__()
        self._process = process

    def format(self, record: logging.LogRecord) -> str:
        """Return `record` as one line."""
        fields: dict[str, object] = {
            "time": now(record.created),
            "level": record.levelname.lower(),
            "process": self._process,
            "logger": record.name,
            "message": without_paths(record.getMessage()),
            **getattr(record, "fields", {}),
        }
        if record.exc_info and record.exc_info[0]:
            kind, _, stack = record.exc_info
            # Not its message, which may quote what the caller sent.
            fields["exception"] = kind.__name__
            fields["stack"] = [
                f"{frame.f_globals.get('__name__')}.{frame.f_code.co_name}:{line}"
                for frame, line in traceback.walk_tb(stack)
            ]
        return json.dumps(fields)


def without_paths(text: str) -> str:
    """Return `text` with folders and memory addresses replaced by `…`."""
    return _ADDRESS.sub("0x…", _FOLDERS.sub("…/", text))


def now(seconds: float | None = None) -> str:
    """Return the time now, or at `seconds` after the epoch, in UTC with microseconds."""
    moment = datetime.datetime.now(datetime.UTC)
    if seconds is not None:
        moment = datetime.datetime.fromtimestamp(seconds, datetime.UTC)
    return moment.isoformat(timespec="microseconds")
