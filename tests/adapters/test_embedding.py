"""How an adapter makes a vector of a text: what its package notes, and where that comes from."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from loramux_adapters import PackageError, open_package
from loramux_adapters.base_names import named_for
from loramux_adapters.contents import Contents
from loramux_adapters.embedding import Embedding, Pooling
from loramux_adapters.head import Task
from loramux_adapters.lora import LoraModule
from loramux_adapters.tensorfile import TensorInfo
from loramux_adapters.unpack import unpack
from tests.adapters.files import CONFIG, write_folder
from tests.adapters.test_heads import TEXTS, with_head
from tests.support.command_line import Loramux
from tests.support.embedders import write_sentence_files

FEATURES = CONFIG | {"task_type": "FEATURE_EXTRACTION"}


def read(folder: Path) -> Embedding:
    with open_package(folder) as (_, package):
        return package.embedding


def test_what_says_nothing_takes_the_last_token(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "a", config=FEATURES)
    with open_package(folder) as (_, package):
        assert package.embedding == Embedding(Pooling.LAST, normalize=True)
        assert "embedding" not in package.notes
        assert (package.task, package.head, package.labels) == ("FEATURE_EXTRACTION", None, None)
    with open_package(write_folder(tmp_path / "b")) as (_, package):
        assert package.task == ""


@pytest.mark.parametrize(
    ("mode", "pooling"),
    [("mean", Pooling.MEAN), ("lasttoken", Pooling.LAST), ("cls", Pooling.FIRST)],
)
def test_files_of_sentence_transformers_are_honoured(
    tmp_path: Path, mode: str, pooling: Pooling
) -> None:
    for normalizes in (False, True):
        folder = write_folder(tmp_path / f"{normalizes}", config=FEATURES)
        write_sentence_files(folder, mode, normalizes=normalizes)
        assert read(folder) == Embedding(pooling, normalizes)
        # As version 5 has it.
        config = json.dumps({"embedding_dimension": 4, "pooling_mode": mode})
        (folder / "1_Pooling" / "config.json").write_text(config)
        assert read(folder) == Embedding(pooling, normalizes)
        # One file is enough.
        (folder / "modules.json").unlink()
        assert read(folder) == Embedding(pooling)


def test_a_package_keeps_what_was_said(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "a", config=FEATURES)
    write_sentence_files(folder, "mean", normalizes=False)
    with open_package(folder) as (file, package):
        before = file.seek(0) or file.read()
        unpack(file, package, tmp_path / "b")
    with open_package(tmp_path / "b") as (file, package):
        assert (file.seek(0) or file.read()) == before
        assert package.embedding == Embedding(Pooling.MEAN, normalize=False)


MODULES = [
    {"idx": 0, "path": "", "type": "sentence_transformers.models.Transformer"},
    {"idx": 1, "path": "1_Pooling", "type": "sentence_transformers.models.Pooling"},
]
DENSE = {"idx": 2, "path": "2_Dense", "type": "sentence_transformers.models.Dense"}


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("modules.json", [*MODULES, DENSE], "models.Dense' is not supported; expected Tr"),
        ("modules.json", [MODULES[0]], "has no Pooling"),
        ("modules.json", MODULES[::-1], "Pooling must directly follow Transformer"),
        ("modules.json", [MODULES[0], MODULES[1] | {"path": "2"}], "the path of Pooling is '2'"),
        ("modules.json", [{"type": 1}], "expected a list of modules"),
        ("modules.json", {}, "expected a list of modules"),
        ("modules.json", "[", "modules.json is not valid JSON"),
        ("1_Pooling/config.json", {"pooling_mode": "max"}, "pooling mode 'max' is not supported"),
        ("1_Pooling/config.json", {"pooling_mode": ["cls", "mean"]}, "'cls and mean' is not supp"),
        ("1_Pooling/config.json", {"pooling_mode_weightedmean_tokens": True}, "'weightedmean'"),
        ("1_Pooling/config.json", {"include_prompt": False}, "include_prompt is false"),
        ("config_sentence_transformers.json", {"default_prompt_name": "query"}, "set it to null"),
        ("sentence_bert_config.json", {"do_lower_case": True}, "do_lower_case is true"),
    ],
)
def test_what_would_make_another_vector_is_refused(
    tmp_path: Path, name: str, content: Any, message: str
) -> None:
    folder = write_folder(tmp_path / "a", config=FEATURES)
    write_sentence_files(folder, "mean", normalizes=True)
    (folder / name).write_text(content if isinstance(content, str) else json.dumps(content))
    with pytest.raises(PackageError) as caught:
        read(folder)
    assert message in str(caught.value)
    assert caught.value.reason in ("UNSUPPORTED_ADAPTER_FEATURE", "INVALID_ADAPTER_CONFIG")


def test_a_pooling_that_is_named_has_to_be_there(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "a", config=FEATURES)
    write_sentence_files(folder, "mean", normalizes=True)
    shutil.rmtree(folder / "1_Pooling")
    with pytest.raises(PackageError, match=r"1_Pooling/config\.json is missing"):
        read(folder)


def test_what_has_a_head_makes_no_vectors(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "a", with_head(), TEXTS)
    write_sentence_files(folder, "max", normalizes=True)
    with open_package(folder) as (_, package):
        assert "embedding" not in package.notes
    (folder / "loramux.json").write_text('{"embedding": {"pooling": "mean"}}')
    with pytest.raises(PackageError, match="the note embedding needs an adapter without a head"):
        read(folder)


@pytest.mark.parametrize(
    ("note", "message"),
    [
        ({"pooling": "max"}, "pooling is 'max'; expected one of last, mean, first"),
        ({"pooling": 1}, "pooling is 1; expected"),
        ({"normalize": 1}, "normalize is 1; expected true or false"),
        ({"dimensions": 3}, "'dimensions' is not a known key"),
    ],
)
def test_notes_are_checked(tmp_path: Path, note: dict[str, object], message: str) -> None:
    folder = write_folder(tmp_path / "a", config=FEATURES)
    (folder / "loramux.json").write_text(json.dumps({"embedding": note}))
    with pytest.raises(PackageError) as caught:
        read(folder)
    assert f"loramux.json: embedding: {message}" in str(caught.value)


def test_pack_takes_a_pooling_from_the_command_line(tmp_path: Path, loramux: Loramux) -> None:
    folder = write_folder(tmp_path / "a", config=FEATURES)
    write_sentence_files(folder, "lasttoken", normalizes=False)
    output = tmp_path / "a.safetensors"
    assert loramux("pack", str(folder), "-o", str(output), "--pooling", "mean").code == 0
    assert read(output) == Embedding(Pooling.MEAN, normalize=False)
    notes = json.loads(loramux("inspect", str(output), "--json").output)["notes"]
    assert notes["embedding"] == {"pooling": "mean", "normalize": False}
    # It goes before what could not be served, too, and before an end that is not put there.
    write_sentence_files(folder, "max", normalizes=False)
    (folder / "tokenizer_config.json").write_text('{"add_eos_token": true}')
    done = loramux("pack", str(folder), "-o", str(output), "--pooling", "last")
    assert done.code == 0, done.errors
    assert read(output) == Embedding(Pooling.LAST, normalize=False)


@pytest.mark.parametrize("mode", ["mean", "lasttoken", None])
def test_texts_that_were_trained_with_an_end_are_refused(tmp_path: Path, mode: str | None) -> None:
    folder = write_folder(tmp_path / "a", config=FEATURES)
    (folder / "tokenizer_config.json").write_text('{"add_eos_token": false}')
    if mode:
        write_sentence_files(folder, mode, normalizes=True)
    read(folder)
    (folder / "tokenizer_config.json").write_text('{"add_eos_token": true}')
    with pytest.raises(PackageError, match="add_eos_token is true, but texts are") as caught:
        read(folder)
    assert caught.value.reason == "UNSUPPORTED_ADAPTER_FEATURE"
    # What is said of it on purpose goes before that, and the first token knows nothing of the end.
    (folder / "loramux.json").write_text('{"embedding": {"pooling": "last"}}')
    assert read(folder) == Embedding(Pooling.LAST)
    (folder / "loramux.json").unlink()
    write_sentence_files(folder, "cls", normalizes=True)
    assert read(folder) == Embedding(Pooling.FIRST)
    # It is no matter to an adapter that continues text.
    folder = write_folder(tmp_path / "b")
    (folder / "tokenizer_config.json").write_text('{"add_eos_token": true}')
    read(folder)


@pytest.mark.parametrize(
    ("task", "modules"),
    [
        ("FEATURE_EXTRACTION", ["layers.0.q", "layers.1.q"]),
        (Task.SPANS, ["transformer.layers.0.q", "transformer.layers.1.q"]),
    ],
)
def test_modules_are_found_in_the_base(task: str, modules: list[str]) -> None:
    tensor = TensorInfo("t", "F32", (2, 2), 0, 0)
    contents = Contents([LoraModule(each, 1.0, tensor, tensor) for each in modules], task=task)
    found = named_for(contents, ["model.layers.0.q"])
    assert [each.module for each in found.modules] == ["model.layers.0.q", "model.layers.1.q"]


def test_two_modules_that_are_one_of_the_base_are_refused() -> None:
    tensor = TensorInfo("t", "F32", (2, 2), 0, 0)
    names = ["a.layers.0.q", "model.layers.0.q"]
    contents = Contents([LoraModule(each, 1.0, tensor, tensor) for each in names], task=Task.SPANS)
    with pytest.raises(PackageError) as caught:
        named_for(contents, ["model.layers.0.q"])
    assert str(caught.value) == (
        "modules 'a.layers.0.q' and 'model.layers.0.q' are both 'model.layers.0.q' of the base "
        "model"
    )
    assert caught.value.reason == "INVALID_ADAPTER_CONFIG"
