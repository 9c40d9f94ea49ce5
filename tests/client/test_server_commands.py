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
BY_THE_GATEWAY = ("msgspec", "platformdirs", "prometheus_client", "uvloop")
"""Those that are there, too, where the gateway is."""


def without(names: tuple[str, ...]) -> str:
    """Return a program that is the command line where these packages are not installed."""
    return f"""
import sys


class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {names!r}:
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


@pytest.mark.parametrize("has_gateway", [False, True])
def test_without_the_server_its_commands_say_what_to_install(has_gateway: bool) -> None:
    there = BY_THE_GATEWAY if has_gateway else ()
    program = ["-c", without(tuple(name for name in SERVER_ALONE if name not in there))]
    done = run(program, "serve", "--model", "x")
    assert done.returncode == 1
    assert done.stderr == f"loramux: serve {NEEDS}\n"
    reported = run(program, "--help").stdout
    assert reported.count("Needs the extra `server`: ") == 4
    assert cut_off(reported) == []


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
