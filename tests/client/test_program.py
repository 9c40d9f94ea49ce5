"""What to type for `loramux`."""

from pathlib import Path

import pytest

from loramux.cli.program import words


def test_a_program_that_the_shell_finds_is_a_name_and_any_other_a_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / ".venv" / "bin"
    folder.mkdir(parents=True)
    executable = str(folder / "python")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert words(executable) == ".venv/bin/python -m loramux.cli"
    script = folder / "loramux"
    script.write_text("#!/bin/sh\n")
    script.chmod(0o755)
    assert words(executable) == ".venv/bin/loramux"
    monkeypatch.chdir(folder)
    monkeypatch.setenv("PATH", str(folder))
    assert words(executable) == "loramux"
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    monkeypatch.setenv("PATH", "")
    assert words(executable) == str(script)
