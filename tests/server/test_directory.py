"""The `--adapters` directory: what the registry has of it after each start."""

import json
import logging
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from peft import HRAConfig, VeraConfig
from safetensors.numpy import load_file, save_file

from loramux_adapters import Package
from loramux_adapters.base_identity import BaseIdentity
from loramux_adapters.vocabulary import BaseVocabulary
from loramux_server.opening import weights_of
from loramux_server.store.check import check_package
from loramux_server.store.directory import Directory
from loramux_server.store.registry import Registry
from loramux_server.store.served_base import ServedBase
from tests.support.adapters import pack_source, save_adapter, save_tuned
from tests.support.bases import ROOMY
from tests.support.models import VOCAB, tiny_model
from tests.support.packages import publish, small_package
from tests.support.permissions import no_override

MODEL = tiny_model("llama")
LAYERS = {
    name: (layer.in_features, layer.out_features)
    for name, layer in MODEL.named_modules()
    if name.endswith("q_proj")
}
BASE = replace(ROOMY, layers=LAYERS)


def import_directory(
    path: Path | None,
    registry: Registry,
    base: ServedBase,
    is_cancelled: Callable[[], bool] | None = None,
) -> int:
    """What a server does when it starts."""
    directory = Directory(path, registry, base)
    return directory.scan(settles=False, is_cancelled=is_cancelled or (lambda: False))


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


@pytest.mark.parametrize("is_strict", [False, True])
def test_adapters_of_another_base_are_warned_of_or_left_out(
    directory: Path, registry: Registry, caplog: pytest.LogCaptureFixture, is_strict: bool
) -> None:
    config = json.loads((directory / "folder" / "adapter_config.json").read_text())
    named = config | {"base_model_name_or_path": "org/Other-1B"}
    (directory / "folder" / "adapter_config.json").write_text(json.dumps(named))
    base = replace(BASE, identity=BaseIdentity("org/Tiny-1B"), is_strict=is_strict)
    why = "its config names the base model 'org/Other-1B', but this one is 'Tiny-1B'"
    assert import_directory(directory, registry, base) == (1 if is_strict else 2)
    (reported,) = [record.getMessage() for record in caplog.records]
    assert reported.startswith(
        "folder is skipped: " if is_strict else "folder seems to be made for"
    )
    assert reported.endswith(why)
    assert registry.get("package").other_base == ""
    if not is_strict:
        assert registry.get("folder").other_base == why


def test_what_is_no_adapter_is_passed_over_without_a_word(
    directory: Path, registry: Registry, caplog: pytest.LogCaptureFixture
) -> None:
    (directory / "README.md").write_text("Adapters of ours.")
    (directory / "checkpoints").mkdir()
    (directory / "checkpoints.safetensors").mkdir()
    assert import_directory(directory, registry, BASE) == 2
    assert registry.names() == ["folder", "package"]
    assert caplog.messages == []


def test_folders_around_adapters_and_whole_models_are_named(
    directory: Path, registry: Registry, caplog: pytest.LogCaptureFixture
) -> None:
    (directory / "run").mkdir()
    shutil.copytree(directory / "folder", directory / "run" / "checkpoint-500")
    MODEL.save_pretrained(str(directory / "merged"))
    for _ in range(2):
        assert import_directory(directory, registry, BASE) == 2
    run, merged = sorted(set(caplog.messages), reverse=True)
    assert run.startswith("run is skipped: ")
    assert run.endswith("its subfolder checkpoint-500 is an adapter")
    assert merged.startswith("merged is skipped: ")
    assert "a whole model" in merged


def test_what_may_not_be_read_leaves_the_others_as_they_are(
    directory: Path, registry: Registry, watched: Directory, caplog: pytest.LogCaptureFixture
) -> None:
    closed = [directory / "lost+found", directory / "folder"]
    closed[0].mkdir()
    with no_override():
        for path in closed:
            path.chmod(0)
        try:
            assert [watched.scan() for _ in range(3)] == [2, 2, 2]
            assert registry.names() == ["folder", "package"]
            assert [message.partition(" is ")[0] for message in caplog.messages] == [
                "folder", "lost+found",
            ]  # fmt: skip
        finally:
            for path in closed:
                path.chmod(0o700)
        assert watched.scan() == 2
    assert registry.get("folder").version == 1


def test_the_directory_is_no_adapter_itself(
    directory: Path, registry: Registry, caplog: pytest.LogCaptureFixture
) -> None:
    shutil.copytree(directory / "folder", directory / "folder" / "fr")
    assert import_directory(directory / "folder", registry, BASE) == 1
    assert registry.names() == ["fr"]
    (message,) = caplog.messages
    assert f"to serve it, use its parent folder, {directory}" in message


def test_what_needs_the_base_has_that_which_is_served(
    directory: Path, registry: Registry, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    save_tuned(MODEL, VeraConfig(r=4, target_modules=["q_proj"]), directory / "vera", seed=1)
    save_tuned(MODEL, HRAConfig(r=4, target_modules=["q_proj"]), directory / "hra", seed=1)
    assert import_directory(directory, registry, BASE) == 3
    assert registry.names() == ["folder", "package", "vera"]
    assert "the update of HRA depends on the weight of the base" in caplog.text
    MODEL.save_pretrained(tmp_path / "base")
    with_weights = replace(BASE, folder=weights_of(str(tmp_path / "base")))
    assert import_directory(directory, registry, with_weights) == 4
    assert registry.names() == ["folder", "hra", "package", "vera"]
    assert weights_of("org/name") is None


def test_what_other_tools_saved_is_served_as_well(directory: Path, registry: Registry) -> None:
    tensors = load_file(directory / "folder" / "adapter_model.safetensors")
    halves = {"lora_A": "lora_down", "lora_B": "lora_up"}
    kohya = {
        f"{module}.{halves[half]}.weight": weight
        for name, weight in tensors.items()
        for module, half in [name.removeprefix("base_model.model.").rsplit(".", 2)[:2]]
    }
    save_file(kohya, directory / "kohya.safetensors")
    assert import_directory(directory, registry, BASE) == 3
    assert registry.names() == ["folder", "kohya", "package"]


def test_a_template_that_comes_to_a_folder_makes_a_version(
    directory: Path, registry: Registry
) -> None:
    import_directory(directory, registry, BASE)
    (directory / "folder" / "chat_template.jinja").write_text("{{ messages }}")
    import_directory(directory, registry, BASE)
    assert registry.get("folder").version == 2


def test_so_do_tokens_that_come_to_a_folder(directory: Path, registry: Registry) -> None:
    save_adapter(
        MODEL, directory / "tokens", seed=1, r=2, target_modules=["q_proj"],
        trainable_token_indices=[5],
    )  # fmt: skip
    base = replace(
        BASE, vocab_size=VOCAB, parameters={"model.embed_tokens.weight": (VOCAB, 32)},
        vocabulary=BaseVocabulary("model.embed_tokens", "lm_head", VOCAB, VOCAB),
    )  # fmt: skip
    import_directory(directory, registry, base)
    tokens = {"added_tokens": [{"id": 5, "content": "<tool>", "special": True}]}
    (directory / "tokens" / "tokenizer.json").write_text(json.dumps(tokens))
    import_directory(directory, registry, base)
    assert registry.get("tokens").version == 2


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
        assert caplog.messages == ["folder.safetensors is skipped: folder/ is adapter 'folder'"]
        assert registry.get("folder").digest == digest


def test_an_import_that_is_cancelled_forgets_nothing(directory: Path, registry: Registry) -> None:
    import_directory(directory, registry, BASE)
    import_directory(directory, registry, BASE, lambda: True)
    assert registry.names() == ["folder", "package"]


# While a server runs


@pytest.fixture
def watched(directory: Path, registry: Registry) -> Directory:
    """The directory, as it is after the start of a server."""
    watched = Directory(directory, registry, BASE)
    watched.scan(settles=False)
    return watched


def add(directory: Path, name: str, seed: int) -> Path:
    return save_adapter(MODEL, directory / name, seed=seed, r=2, target_modules=["q_proj"])


def test_what_is_new_is_served_once_it_keeps_still(
    directory: Path, registry: Registry, watched: Directory
) -> None:
    add(directory, "new", 5)
    watched.scan()
    assert "new" not in registry.names()
    assert watched.scan() == 3
    assert registry.names() == ["folder", "new", "package"]


def test_what_is_half_written_is_not_served_until_it_is_whole(
    directory: Path, registry: Registry, watched: Directory, caplog: pytest.LogCaptureFixture
) -> None:
    whole = (directory / "package.safetensors").read_bytes()
    growing = directory / "growing.safetensors"
    for part in (100, len(whole) // 2, len(whole) - 1):
        growing.write_bytes(whole[:part])
        for _ in range(3):  # it pauses for longer than two looks
            watched.scan()
        assert "growing" not in registry.names()
    assert len(caplog.messages) == 3  # once for each state
    growing.write_bytes(whole)
    watched.scan()
    watched.scan()
    assert registry.get("growing").digest == registry.get("package").digest


def test_what_changes_while_it_is_read_waits_for_the_next_look(
    directory: Path, registry: Registry, watched: Directory, monkeypatch: pytest.MonkeyPatch
) -> None:
    new = add(directory, "new", 5)
    watched.scan()

    def change_while_it_is_read(*arguments: Any) -> Package:
        (new / "adapter_config.json").touch()
        return check_package(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr("loramux_server.store.directory.check_package", change_while_it_is_read)
        watched.scan()
    assert "new" not in registry.names()
    watched.scan()
    watched.scan()
    assert "new" in registry.names()


def test_what_changed_is_the_next_version(
    directory: Path, registry: Registry, watched: Directory
) -> None:
    old = registry.get("folder")
    shutil.rmtree(directory / "folder")
    add(directory, "folder", 7)
    for _ in range(2):
        watched.scan()
    assert registry.get("folder").version == old.version + 1
    assert registry.get("folder").digest != old.digest


def test_so_are_notes_that_changed(directory: Path, registry: Registry, watched: Directory) -> None:
    old = registry.get("folder")
    (directory / "folder" / "loramux.json").write_text('{"licence": "MIT"}')
    for _ in range(2):
        watched.scan()
    assert registry.get("folder").version == old.version + 1


def test_what_changed_for_the_worse_leaves_what_was_there(
    directory: Path, registry: Registry, watched: Directory
) -> None:
    old = registry.get("package")
    (directory / "package.safetensors").write_bytes(b"nothing")
    for _ in range(3):
        watched.scan()
    assert registry.get("package") == old


def test_what_is_away_for_a_moment_stays_and_what_is_gone_goes(
    directory: Path, registry: Registry, watched: Directory
) -> None:
    path = directory / "package.safetensors"
    content = path.read_bytes()
    path.unlink()
    watched.scan()
    path.write_bytes(content)
    for _ in range(2):
        watched.scan()
    assert registry.get("package").version == 1
    path.unlink()
    for _ in range(2):
        watched.scan()
    assert registry.names() == ["folder"]


def test_an_upload_keeps_its_name_until_it_is_deleted(
    directory: Path, registry: Registry, watched: Directory, caplog: pytest.LogCaptureFixture
) -> None:
    uploaded = publish(registry, "mine", small_package(0))
    add(directory, "mine", 8)
    for _ in range(4):
        watched.scan()
    assert registry.get("mine") == uploaded
    assert len(caplog.messages) == 1
    registry.delete("mine")
    watched.scan()
    assert registry.get("mine").source == "directory"
