"""How to call this command line again, for messages that show a command."""

import os
import shutil
import sys
from pathlib import Path

NAME = "loramux"


def words(executable: str = sys.executable) -> str:
    """Return what to type for `loramux` in the current folder: a name, a path, or a module.

    Args:
        executable: The Python interpreter that has this package.
    """
    script = Path(executable).with_name(NAME)
    found = shutil.which(NAME)
    if found and Path(found).resolve() == script.resolve():
        return NAME
    if script.is_file():
        return _shorter(script)
    return f"{_shorter(Path(executable))} -m loramux.cli"


def _shorter(path: Path) -> str:
    """Return `path` relative to the current folder if it is inside that."""
    here = os.path.relpath(path)
    return str(path) if here.startswith(os.pardir) else here
