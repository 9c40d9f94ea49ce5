"""The unit of systemd starts what there is, and lets it end."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from loramux_server.commands.serve import EXIT_CONFIG
from tests.deploy.manifests import values
from tests.deploy.options import options_of

UNIT = Path(__file__).parents[2] / "deploy" / "systemd" / "loramux.service"
TEXT = UNIT.read_text(encoding="utf-8").replace("\\\n", " ")


def setting(name: str) -> str:
    (found,) = re.findall(rf"^{name}=(.*)$", TEXT, re.MULTILINE)
    return str(found)


def test_the_options_are_there_and_time_to_drain_is_left() -> None:
    program, command, *arguments = setting("ExecStart").split()
    assert program.endswith("/loramux")
    given = values(arguments)
    assert set(given) <= options_of(command)
    assert float(setting("TimeoutStopSec")) >= float(given["--drain-timeout"]) + 10
    assert given["--store"].startswith(f"/var/lib/{setting('StateDirectory')}/")


def test_a_wrong_setting_is_not_tried_again() -> None:
    assert setting("Restart") == "on-failure"
    assert int(setting("RestartPreventExitStatus")) == EXIT_CONFIG


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="there is no systemd")
def test_systemd_understands_it(tmp_path: Path) -> None:
    copy = tmp_path / UNIT.name
    copy.write_text(TEXT.replace(setting("ExecStart").split()[0], "/bin/true"))
    done = subprocess.run(
        ["systemd-analyze", "verify", str(copy)], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
