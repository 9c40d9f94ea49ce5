"""How to install an extra of this distribution, which is not on a package index."""

import json
import os
import shlex
import sys
from importlib import metadata
from pathlib import Path
from typing import Any, cast
from urllib.parse import unquote, urlsplit

DISTRIBUTION = "loramux"


def install_command(extra: str) -> str:
    """Return a command that installs `extra` from where the distribution was installed.

    Source: `direct_url.json`, https://packaging.python.org/specifications/.
    """
    origin = _origin()
    url = str(origin.get("url", ""))
    folder = Path(unquote(urlsplit(url).path)) if url.startswith("file:") else None
    if folder and (folder / "pyproject.toml").is_file():
        place = "." if folder.samefile(Path.cwd()) else str(folder)
        editable = " --editable" if origin.get("dir_info", {}).get("editable") else ""
        return f"{_python()} -m pip install{editable} {shlex.quote(f'{place}[{extra}]')}"
    if "vcs_info" in origin:
        source = f"{origin['vcs_info']['vcs']}+{url}@{origin['vcs_info']['commit_id']}"
        return f"{_python()} -m pip install {shlex.quote(f'{DISTRIBUTION}[{extra}] @ {source}')}"
    return f"pip install '.[{extra}]' in a clone of {DISTRIBUTION}"


def _origin() -> dict[str, Any]:
    """Return what pip recorded about the origin of the installation."""
    try:
        noted = metadata.distribution(DISTRIBUTION).read_text("direct_url.json")
    except metadata.PackageNotFoundError:
        return {}
    return cast(dict[str, Any], json.loads(noted or "{}"))


def _python() -> str:
    here = os.path.relpath(sys.executable)
    return shlex.quote(sys.executable if here.startswith(os.pardir) else here)
