"""What to type for an extra that is not installed."""

import json
import shlex
import sys
from importlib import metadata
from pathlib import Path

import pytest

from loramux_adapters.extras import install_command


class Installed:
    def __init__(self, origin: object) -> None:
        self._origin = origin

    def read_text(self, name: str) -> str | None:
        return None if self._origin is None else json.dumps(self._origin)


def test_an_extra_comes_from_where_the_package_came(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clone = tmp_path / "a clone"
    clone.mkdir()
    (clone / "pyproject.toml").touch()
    pip = f"{sys.executable} -m pip install"
    monkeypatch.chdir(tmp_path)

    def command(origin: object) -> str:
        monkeypatch.setattr(metadata, "distribution", lambda name: Installed(origin))
        return install_command("more")

    folder = {"url": clone.as_uri(), "dir_info": {}}
    assert command(folder) == f"{pip} {shlex.quote(f'{clone}[more]')}"
    monkeypatch.chdir(clone)
    assert command(folder | {"dir_info": {"editable": True}}) == f"{pip} --editable '.[more]'"
    commit = {"vcs_info": {"vcs": "git", "commit_id": "1f"}, "url": "https://host/x.git"}
    assert command(commit) == f"{pip} 'loramux[more] @ git+https://host/x.git@1f'"
    for unknown in (None, {"url": "file:///gone.whl", "archive_info": {}}):
        assert command(unknown) == "pip install '.[more]' in a clone of loramux"
