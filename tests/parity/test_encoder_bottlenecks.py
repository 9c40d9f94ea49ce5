"""Bottleneck adapters of models with an encoder, in one batch, equal to the adapters library.

What the library computes is kept in files; see `tests/adapters/library/make.py`.
"""

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModel

from loramux_adapters import PackageError
from loramux_adapters.embedding import Pooling
from loramux_server.models.loading import load_base_model
from loramux_server.store.check import check_package
from loramux_server.store.served_base import ServedBase
from tests.parity.test_bottleneck import LIBRARY, PROMPT, VOCAB, packed
from tests.support.adapters import source_of
from tests.support.embedders import vector_of
from tests.support.engine import Harness

ENCODERS = ("bert", "distilbert", "albert", "deberta")
SEQ2SEQ = ("t5", "bart", "mbart")
WRITTEN = [0, 7, 11]


def begun(architecture: str) -> Harness:
    base = load_base_model(str(LIBRARY / architecture / "base"))
    return Harness(base, kernels="cpu", rows=256, max_running=12, num_blocks=60)


def packages(architecture: str, harness: Harness, folder: Path) -> dict[str, Path]:
    """Return the package of each adapter, checked for the base."""
    served = ServedBase.of(harness.info, max_host_bytes=1 << 30)
    found = {}
    for name in ("pfeiffer", "houlsby", "parallel", "rest"):
        found[name] = packed(LIBRARY / architecture / name, folder / name)
        with found[name].open("rb") as file:
            check_package(file, found[name].stat().st_size, served)
    return found


@pytest.mark.parametrize("architecture", ENCODERS)
def test_each_text_is_what_the_library_computes(architecture: str, tmp_path: Path) -> None:
    harness = begun(architecture)
    states = load_file(LIBRARY / architecture / "logits.safetensors")
    own = AutoModel.from_pretrained(LIBRARY / architecture / "base").eval()
    with torch.inference_mode():
        plain = own(input_ids=torch.tensor([PROMPT]))[0][0]
    wanted = {}
    for name, package in packages(architecture, harness, tmp_path).items():
        assert (states[name] - plain).abs().max() > 0.03
        # Texts of one adapter take turns in each of its networks.
        for pooling in (Pooling.LAST, Pooling.MEAN):
            request_id = harness.submit(PROMPT, source_of(package), pooling=pooling)
            wanted[request_id] = vector_of(states[name], pooling, normalize=False)
        harness.submit(PROMPT[::-2], source_of(package), pooling=Pooling.LAST)
    wanted[harness.submit(PROMPT, pooling=Pooling.LAST)] = plain[-1]
    harness.run()
    assert not harness.failures
    for request_id, vector in wanted.items():
        found = harness.logits(request_id, len(vector))[0]
        torch.testing.assert_close(found, vector, rtol=0, atol=1e-4)


def logprobs(harness: Harness, request_id: int, number: int = 0) -> torch.Tensor:
    reported = harness.tokens[request_id][number].logprobs
    assert reported is not None
    return torch.tensor([logprob for _, logprob in sorted(reported.top)])


@pytest.mark.parametrize("architecture", SEQ2SEQ)
def test_what_is_written_is_what_the_library_computes(architecture: str, tmp_path: Path) -> None:
    harness = begun(architecture)
    logits = load_file(LIBRARY / architecture / "logits.safetensors")
    given = packages(architecture, harness, tmp_path)

    def asked(name: str, written: list[int]) -> int:
        return harness.submit(
            [*PROMPT, *written], source_of(given[name]), num_source=len(PROMPT), max_tokens=3,
            num_logprobs=VOCAB,
        )  # fmt: skip

    first = {name: asked(name, WRITTEN) for name in given}
    harness.run()
    for name, request_id in first.items():
        wanted = logits[name].log_softmax(-1)
        torch.testing.assert_close(logprobs(harness, request_id), wanted, rtol=0, atol=1e-4)
    # What came token by token is what comes of all tokens at once.
    again = {
        name: asked(name, [*WRITTEN, *harness.output(request_id)[:2]])
        for name, request_id in first.items()
    }
    harness.run()
    assert not harness.failures
    for name, request_id in first.items():
        torch.testing.assert_close(
            logprobs(harness, again[name]), logprobs(harness, request_id, 2), rtol=0, atol=1e-4
        )


def test_one_of_another_model_does_not_fit(tmp_path: Path) -> None:
    package = packed(LIBRARY / "distilbert" / "houlsby", tmp_path / "package")
    served = ServedBase.of(begun("bert").info, max_host_bytes=1 << 30)
    with package.open("rb") as file, pytest.raises(PackageError) as caught:
        check_package(file, package.stat().st_size, served)
    assert "the base model has no layer transformer.layer.0 with the parts that" in str(
        caught.value
    )


def test_a_class_of_the_library_may_have_a_name_before_all_layers(tmp_path: Path) -> None:
    folder = tmp_path / "adapter"
    shutil.copytree(LIBRARY / "t5" / "houlsby", folder)
    tensors = load_file(folder / "adapter.safetensors")
    save_file(
        {f"transformer.{name}": tensor for name, tensor in tensors.items()},
        folder / "adapter.safetensors",
    )
    package = packed(folder, tmp_path / "package")
    served = ServedBase.of(begun("t5").info, max_host_bytes=1 << 30)
    with package.open("rb") as file:
        contents = check_package(file, package.stat().st_size, served).contents
    assert {each.layer.partition(".")[0] for each in contents.bottlenecks} == {"encoder", "decoder"}
