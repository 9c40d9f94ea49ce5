"""`loramux --help`: every command below a heading, with a whole sentence."""

import pytest
import typer.main
from typer.core import TyperGroup
from typer.testing import CliRunner

from loramux.cli.app import app
from loramux.cli.headings import HEADINGS
from tests.support.help_text import cut_off


def test_every_command_is_below_one_heading() -> None:
    names = [name for below in HEADINGS.values() for name in below]
    group = typer.main.get_command(app)
    assert isinstance(group, TyperGroup)
    assert sorted(names) == sorted(group.commands)
    shown = CliRunner().invoke(app, ["--help"]).output.splitlines()
    headings = [line for line in shown if line.endswith(":") and not line.startswith(" ")]
    assert headings == ["Options:", *(f"{heading}:" for heading in HEADINGS)]
    first_words = [line.split()[0] for line in shown if line.startswith("  ")]
    assert [word for word in first_words if word in names] == names


@pytest.mark.parametrize("command", [[], ["alias"], ["keys"], ["quarantine"], ["tenants"]])
def test_no_summary_is_cut_off(command: list[str]) -> None:
    assert cut_off(CliRunner().invoke(app, [*command, "--help"]).output) == []
