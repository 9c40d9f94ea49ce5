"""Prediction heads of the adapters library on encoders, in one batch, equal to the library.

What the library computes is kept in files; see `tests/adapters/library/make.py`.
"""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from loramux_adapters import PackageError, pack, unpack
from loramux_adapters.head import Task
from loramux_adapters.labels import ProblemType
from loramux_adapters.package import Package, read_package
from loramux_server.models.loading import load_base_model
from loramux_server.store.check import check_package
from loramux_server.store.served_base import ServedBase
from tests.parity.test_bottleneck import LIBRARY, PROMPT, packed
from tests.support.adapters import source_of
from tests.support.engine import Harness

HEADS = LIBRARY / "heads"
TASKS = {
    "classification": Task.SEQUENCE, "multilabel": Task.SEQUENCE, "regression": Task.SEQUENCE,
    "tagging": Task.TOKENS, "spans": Task.SPANS, "class-bert": Task.SEQUENCE,
}  # fmt: skip


def begun(architecture: str) -> Harness:
    base = load_base_model(str(LIBRARY / architecture / "base"))
    return Harness(base, kernels="cpu", rows=256, max_running=12)


def checked(package: Path, harness: Harness) -> Package:
    served = ServedBase.of(harness.info, max_host_bytes=1 << 30)
    with package.open("rb") as file:
        return check_package(file, package.stat().st_size, served)


@pytest.mark.parametrize(("base", "tasks"), [
    ("bert", TASKS), ("distilbert", {"class-distilbert": Task.SEQUENCE}),
])  # fmt: skip
def test_each_text_has_the_logits_of_the_library(
    base: str, tasks: dict[str, Task], tmp_path: Path
) -> None:
    harness = begun(base)
    logits = load_file(HEADS / "logits.safetensors")
    wanted = {}
    for name, task in tasks.items():
        package = packed(HEADS / name, tmp_path / name)
        assert checked(package, harness).task == task
        wanted[harness.submit(PROMPT, source_of(package))] = logits[name]
        harness.submit(PROMPT[:3], source_of(package))
    harness.run()
    assert not harness.failures
    for request_id, expected in wanted.items():
        found = harness.logits(request_id, expected.shape[-1])
        assert found.shape == expected.shape
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    ("name", "names", "problem"),
    [
        ("classification", ("calm", "cross", "glad"), ProblemType.SINGLE_LABEL),
        ("multilabel", ("LABEL_0", "LABEL_1", "LABEL_2", "LABEL_3"), ProblemType.MULTI_LABEL),
        ("regression", ("LABEL_0",), ProblemType.REGRESSION),
        ("class-bert", ("LABEL_0", "LABEL_1"), ProblemType.SINGLE_LABEL),
    ],
)
def test_a_package_notes_what_the_library_says_of_labels(
    name: str, names: tuple[str, ...], problem: ProblemType, tmp_path: Path
) -> None:
    path = packed(HEADS / name, tmp_path / "package")
    with path.open("rb") as file:
        package = read_package(file, path.stat().st_size)
        unpack(file, package, tmp_path / "again")
    assert package.labels is not None
    assert (package.labels.names, package.labels.problem) == (names, problem)
    with (tmp_path / "second").open("wb") as output:
        pack(tmp_path / "again", output)
    assert (tmp_path / "second").read_bytes() == path.read_bytes()


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    return Path(shutil.copytree(HEADS / "classification", tmp_path / "adapter"))


def refusal(folder: Path) -> str:
    with pytest.raises(PackageError) as caught:
        packed(folder, folder / "out")
    return str(caught.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"head_type": "masked_lm"}, "'head_type' = 'masked_lm' is not supported: expected one"),
        ({"use_pooler": True}, "'use_pooler' = True is not supported: a head must read the"),
        ({"later": 1}, "'later' = 1 is not supported: the field is not known"),
        ({"layers": 3}, "has 2 layers of the heads ['classification']; expected 3"),
        ({"layers": 99}, "layers is 99; expected an integer from 1 to 8"),
        ({"activation_function": "maxout"}, "head_activation is 'maxout'; expected one of gelu"),
        ({"label2id": {"a": 1}}, "label2id is {'a': 1}; expected an object of names with 0, 1"),
        ({"label2id": {"a": 0, "b": 1}}, "labels has 2 names; the head (base_model.model."),
    ],
)
def test_a_head_that_is_not_served_is_named(
    adapter: Path, changes: dict[str, Any], message: str
) -> None:
    path = adapter / "head_config.json"
    config = json.loads(path.read_text())
    config["config"] |= changes
    path.write_text(json.dumps(config))
    assert message in refusal(adapter)


def test_files_of_a_head_belong_together(adapter: Path) -> None:
    tensors = load_file(adapter / "model_head.safetensors")
    save_file(tensors | {"other.weight": torch.ones(1)}, adapter / "model_head.safetensors")
    assert "tensor other.weight is not supported; expected 'heads." in refusal(adapter)
    (adapter / "model_head.safetensors").rename(adapter / "pytorch_model_head.bin")
    assert "pytorch_model_head.bin is a pickle, which can run code" in refusal(adapter)
    (adapter / "pytorch_model_head.bin").unlink()
    assert "has no readable model_head.safetensors" in refusal(adapter)
    config = json.loads((adapter / "head_config.json").read_text()) | {"config": None}
    save_file(tensors, adapter / "model_head.safetensors")
    (adapter / "head_config.json").write_text(json.dumps(config))
    assert "'BertAdapterModel' is not supported: expected a head of ForSequ" in refusal(adapter)


def test_a_head_has_to_fit_what_comes_to_it(adapter: Path, tmp_path: Path) -> None:
    path = adapter / "model_head.safetensors"
    tensors = load_file(path)
    narrow = {"heads.classification.4.weight": torch.ones(3, 9)}
    save_file(tensors | narrow, path)
    package, harness = packed(adapter, tmp_path / "package"), begun("bert")
    with pytest.raises(PackageError, match=r"classifier\.1\.weight is missing, or does not take"):
        checked(package, harness)
    biased = {"heads.classification.1.bias": torch.ones(9)}
    save_file(tensors | biased, path)
    with pytest.raises(PackageError, match=r"classifier\.0\.bias: shape \[9\] is not \[16\]"):
        checked(packed(adapter, tmp_path / "other"), harness)


def test_a_head_of_the_library_is_for_encoders(adapter: Path, tmp_path: Path) -> None:
    package = packed(adapter, tmp_path / "package")
    with pytest.raises(PackageError, match="needs an encoder, which the base model is not"):
        checked(package, begun("llama"))
