"""Commands of the server where it is not installed, and where it is and does not work."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from loramux_adapters.extras import install_command
from tests.support.help_text import cut_off

NEEDS = f"needs the server: {install_command('server')}"
SERVER_ALONE = (
    "PIL", "blake3", "greenlet", "huggingface_hub", "jinja2", "llguidance", "msgspec", "numba",
    "platformdirs", "proclimits", "prometheus_client", "psutil", "sqlalchemy", "tokenizers",
    "torch", "transformers", "uvloop",
)  # fmt: skip
WITHOUT = f"""
import sys


class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {SERVER_ALONE!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)


sys.meta_path.insert(0, Absent())
from loramux.cli import main
sys.exit(main())
"""


def run(
    program: list[str], *arguments: str, path: Path | None = None
) -> subprocess.CompletedProcess[str]:
    places = [str(path)] if path else []
    places += [place for place in sys.path if place]
    return subprocess.run(
        [sys.executable, *program, *arguments],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(places)},
        capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip


def test_without_the_server_its_commands_say_what_to_install() -> None:
    done = run(["-c", WITHOUT], "serve", "--model", "x")
    assert done.returncode == 1
    assert done.stderr == f"loramux: serve {NEEDS}\n"
    told = run(["-c", WITHOUT], "--help").stdout
    assert told.count("Needs the extra `server`: ") == 4
    assert cut_off(told) == []


@pytest.mark.parametrize(
    ("module", "source", "cause"),
    [
        ("platformdirs", "raise ImportError('libfoo.so.1: no such file')", "libfoo.so.1"),
        ("msgspec", "import gone_with_an_upgrade", "No module named 'gone_with_an_upgrade'"),
    ],
)
def test_a_server_that_is_broken_says_how(
    module: str, source: str, cause: str, tmp_path: Path
) -> None:
    (tmp_path / f"{module}.py").write_text(source)
    done = run(["-m", "loramux.cli"], "serve", "--model", "x", path=tmp_path)
    assert done.returncode == 1
    assert cause in done.stderr and "Traceback" in done.stderr
    assert "pip install" not in done.stderr


def test_other_commands_go_on_where_the_server_is_broken(tmp_path: Path) -> None:
    (tmp_path / "platformdirs.py").write_text("import gone_with_an_upgrade")
    done = run(["-m", "loramux.cli"], "ls", "--help", path=tmp_path)
    assert done.returncode == 0 and "List" in done.stdout
