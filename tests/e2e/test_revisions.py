"""A base model of the hub, of one revision."""

import shutil
from pathlib import Path

import pytest

from loramux_server.models.loading import load_base_model
from loramux_server.models.servable import UnservableModelError
from tests.support.server import RunningServer

OF_TAG, OF_MAIN = "a" * 40, "b" * 40
"""Commits."""


@pytest.fixture
def home(tmp_path: Path, tiny_base: Path) -> str:
    """Return a folder as HF_HOME: org/base, whose branch main is a model without anything."""
    repository = tmp_path / "home" / "hub" / "models--org--base"
    shutil.copytree(tiny_base, repository / "snapshots" / OF_TAG)
    main = repository / "snapshots" / OF_MAIN
    main.mkdir()
    (main / "config.json").write_text('{"model_type": "gpt2"}')
    refs = repository / "refs"
    refs.mkdir()
    (refs / "v1").write_text(OF_TAG)
    (refs / "main").write_text(OF_MAIN)
    return str(tmp_path / "home")


def test_all_of_a_base_is_of_its_revision(tmp_path: Path, home: str) -> None:
    with (
        RunningServer(
            tmp_path, Path("org/base"), "--revision", "v1", HF_HOME=home, HF_HUB_OFFLINE="1"
        ) as server,
        server.client() as client,
    ):
        assert client.info().base_model == "base"
        assert client.generate("hi", max_tokens=1, ignore_eos=True).token_ids


@pytest.mark.parametrize(("revision", "says"), [
    ("v1", "revision is 'v1', but the model is a folder"),
    ("", "revision is ''; expected a branch, tag or commit"),
])  # fmt: skip
def test_a_folder_has_none(tiny_base: Path, revision: str, says: str) -> None:
    with pytest.raises(UnservableModelError, match=says):
        load_base_model(str(tiny_base), revision=revision)
