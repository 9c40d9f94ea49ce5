"""The `--adapters` directory: what the registry has of it after each start."""

import logging
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from loramux_server.store.check import ServedBase
from loramux_server.store.directory import import_directory
from loramux_server.store.registry import Registry
from tests.support.adapters import pack_source, save_adapter
from tests.support.models import tiny_model

MODEL = tiny_model("llama")
LAYERS = {
    name: (layer.in_features, layer.out_features)
    for name, layer in MODEL.named_modules()
    if name.endswith("q_proj")
}
BASE = ServedBase(layers=LAYERS, max_rows=64, max_host_bytes=1 << 30)


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """Two adapters: one as a folder and one as a package."""
    directory = tmp_path / "adapters"
    for seed, name in enumerate(("folder", "package")):
        save_adapter(MODEL, directory / name, seed=seed, r=2, target_modules=["q_proj"])
    pack_source(directory / "package", directory / "package.safetensors")
    shutil.rmtree(directory / "package")
    return directory


@pytest.fixture
def registry(tmp_path: Path) -> Iterator[Registry]:
    registry = Registry(tmp_path / "store")
    yield registry
    registry.close()


def test_what_is_in_the_directory_is_served(directory: Path, registry: Registry) -> None:
    assert import_directory(directory, registry, BASE) == 2
    assert registry.names() == ["folder", "package"]


def test_what_has_left_the_directory_is_forgotten(directory: Path, registry: Registry) -> None:
    import_directory(directory, registry, BASE)
    shutil.rmtree(directory / "folder")
    assert import_directory(directory, registry, BASE) == 1
    assert registry.names() == ["package"]


def test_without_the_directory_nothing_of_it_is_left(directory: Path, registry: Registry) -> None:
    import_directory(directory, registry, BASE)
    assert import_directory(None, registry, BASE) == 0
    assert registry.names() == []


def test_of_a_folder_and_a_package_of_one_name_the_folder_is_taken_each_time(
    directory: Path, registry: Registry, caplog: pytest.LogCaptureFixture
) -> None:
    import_directory(directory, registry, BASE)
    digest = registry.get("folder").digest
    shutil.copy(directory / "package.safetensors", directory / "folder.safetensors")
    for _ in range(3):
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            assert import_directory(directory, registry, BASE) == 2
        assert caplog.messages == ["folder.safetensors is left out: folder/ is adapter 'folder'"]
        assert registry.get("folder").digest == digest


def test_an_import_that_is_cancelled_forgets_nothing(directory: Path, registry: Registry) -> None:
    import_directory(directory, registry, BASE)
    import_directory(directory, registry, BASE, lambda: True)
    assert registry.names() == ["folder", "package"]
