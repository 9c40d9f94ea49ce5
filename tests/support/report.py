"""What a campaign found, as a file."""

import json
import sys
from pathlib import Path

from benchmarks.machine import describe


def write_report(path: Path, result: object) -> None:
    """Write `result`, the command that it is of, and what it was found on."""
    command = " ".join(["python", *sys.orig_argv[1:]])
    document = {"command": command, "machine": describe(), "result": result}
    path.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
