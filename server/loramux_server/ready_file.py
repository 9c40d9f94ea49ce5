"""The ready file: tells the process that started the server where it listens."""

import json
import os
from pathlib import Path

from loramux_server.config import ConfigError


def write_ready_file(name: str, **addresses: str) -> None:
    """Write `addresses` to the file `name`, as JSON.

    Raises:
        ConfigError: It cannot be written.
    """
    path = Path(name)
    # Renamed into place, so that nobody who polls for it reads a partial file.
    partial = path.with_name(f"{path.name}.{os.getpid()}")
    try:
        partial.write_text(json.dumps(addresses), encoding="utf-8")
        partial.replace(path)
    except OSError as error:
        raise ConfigError(f"--ready-file {path}: {error.strerror}") from None
