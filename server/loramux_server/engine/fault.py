"""Error messages for callers about failed background work; details of bugs go to the log."""

import logging
import secrets

from loramux_adapters import PackageError
from loramux_server.engine.out_of_memory import is_out_of_memory
from loramux_server.lora.packed import DamagedError

_log = logging.getLogger(__name__)


class ExplainedError(Exception):
    """An error that another process has explained with `explained`."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


def explained(error: BaseException, doing: str) -> tuple[str, str]:
    """Return a name of `loramux.v1.ErrorReason` without its prefix, and a message for callers.

    Args:
        error: What was raised.
        doing: What was being done, for the log, such as "loading sha256:…".
    """
    if isinstance(error, DamagedError | PackageError | ExplainedError):
        return error.reason, str(error)
    if is_out_of_memory(error):
        return "ENGINE_OUT_OF_MEMORY", "not enough memory is free at present"
    incident = secrets.token_hex(8)
    _log.error("incident %s: %s failed", incident, doing, exc_info=error)
    return "INTERNAL", f"internal error, incident {incident}"
