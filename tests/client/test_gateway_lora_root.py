"""What a path of a caller may name on the gateway's machine."""

import os
from pathlib import Path

import pytest

from loramux.errors import InvalidArgumentError, NotFoundError
from loramux.gateway.lora_root import LoraRoot


@pytest.fixture
def root(tmp_path: Path) -> LoraRoot:
    """A folder with an adapter, beside one with another."""
    for name in ("in/bot", "out/bot"):
        (tmp_path / name / "1_Pooling").mkdir(parents=True)
        (tmp_path / name / "adapter_config.json").write_text("{}")
    return LoraRoot(tmp_path / "in")


def test_paths_below_the_folder_are_found(root: LoraRoot, tmp_path: Path) -> None:
    bot = tmp_path / "in" / "bot"
    (tmp_path / "in" / "latest").symlink_to("bot")
    (bot / "tokenizer.json").symlink_to("adapter_config.json")
    for path in ("bot", "bot/", "./bot", "latest", str(bot), f"{tmp_path}/out/../in/latest"):
        assert root.find(path) == bot
    assert root.find("bot/adapter_config.json") == bot / "adapter_config.json"


def test_the_folder_may_be_a_link_itself(root: LoraRoot, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("in")
    for folder in (tmp_path / "link", tmp_path / "in"):
        assert LoraRoot(folder).find(str(tmp_path / "link" / "bot")) == tmp_path / "in" / "bot"


@pytest.mark.parametrize(
    "path", ["", ".", "..", "../in", "../out/bot", "/", "/etc", "bot/..", "\0"]
)
def test_what_is_elsewhere_is_refused(root: LoraRoot, path: str) -> None:
    with pytest.raises(InvalidArgumentError) as refused:
        root.find(path)
    assert refused.value.field == "lora_path"


def test_a_name_that_only_begins_alike_is_elsewhere(root: LoraRoot, tmp_path: Path) -> None:
    (tmp_path / "inner").mkdir()
    with pytest.raises(InvalidArgumentError):
        root.find(str(tmp_path / "inner"))


def test_what_is_elsewhere_is_refused_alike_whether_it_is_there(
    root: LoraRoot, tmp_path: Path
) -> None:
    said = []
    for name in ("bot", "nil"):
        with pytest.raises(InvalidArgumentError) as refused:
            root.find(str(tmp_path / "out" / name))
        said.append(str(refused.value).replace("nil", "bot"))
    assert said[0] == said[1]


@pytest.mark.parametrize(
    "link", ["away", "bot/adapter_model.safetensors", "bot/1_Pooling/config.json", "bot/2_Dense"]
)
def test_links_that_lead_out_are_refused(root: LoraRoot, tmp_path: Path, link: str) -> None:
    (tmp_path / "in" / link).symlink_to(tmp_path / "out" / "bot")
    with pytest.raises(InvalidArgumentError):
        root.find(link.partition("/")[0])


def test_a_linked_folder_is_looked_into(root: LoraRoot, tmp_path: Path) -> None:
    other = tmp_path / "in" / "other"
    other.mkdir()
    (tmp_path / "in" / "bot" / "2_Dense").symlink_to(other)
    assert root.find("bot")
    (other / "config.json").symlink_to(tmp_path / "out" / "bot" / "adapter_config.json")
    with pytest.raises(InvalidArgumentError):
        root.find("bot")


@pytest.mark.parametrize("path", ["nothing", "bot/adapter_config.json/x", "x" * 300, "loop"])
def test_what_is_not_there_is_not_found(root: LoraRoot, tmp_path: Path, path: str) -> None:
    (tmp_path / "in" / "loop").symlink_to("loop")
    with pytest.raises(NotFoundError) as refused:
        root.find(path)
    assert refused.value.field == "lora_path"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_folder_that_cannot_be_read_is_an_error(root: LoraRoot, tmp_path: Path) -> None:
    (tmp_path / "in" / "bot").chmod(0)
    try:
        with pytest.raises(PermissionError):
            root.find("bot")
    finally:
        (tmp_path / "in" / "bot").chmod(0o700)


def test_the_folder_has_to_be_one(tmp_path: Path) -> None:
    with pytest.raises(InvalidArgumentError, match="--lora-path-root"):
        LoraRoot(tmp_path / "nothing")
