"""The command line in this process, and an adapter for it."""

import sys
from pathlib import Path

import pytest

from loramux.cli.app import run
from tests.adapters.files import CONFIG, TENSORS, pair, write_folder
from tests.support.command_line import Loramux, Result


@pytest.fixture
def loramux(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> Loramux:
    """Runs the command line in this process, in a directory of its own."""
    monkeypatch.chdir(tmp_path)

    def call(*arguments: str) -> Result:
        monkeypatch.setattr(sys, "argv", ["loramux", *arguments])
        try:
            code = run()
        except SystemExit as end:
            code = int(end.code or 0)
        output, errors = capsys.readouterr()
        return Result(code, output, errors)

    return call


@pytest.fixture
def poet(tmp_path: Path) -> Path:
    """A PEFT folder with layers of two kinds."""
    tensors = {
        **TENSORS,
        **pair("model.layers.1.self_attn.q_proj", 2),
        **pair("model.layers.1.mlp.up_proj", 3, features=(7, 9), dtype="F16"),
    }
    config = CONFIG | {
        "target_modules": ["q_proj", "up_proj"],
        "rank_pattern": {"up_proj": 3},
        "base_model_name_or_path": "org/base",
    }
    return write_folder(tmp_path / "poet", tensors, config)
