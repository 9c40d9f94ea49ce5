"""Bottleneck adapters of the adapters library, in one batch, equal to the library.

It needs another version of transformers than the server, so what it computes is kept in files, made
by `tests/adapters/library/make.py`.
"""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from loramux_adapters import PackageError
from loramux_adapters.fit import check_fit
from loramux_adapters.package import read_package
from loramux_adapters.sources import open_package, pack_source
from tests.support.adapters import source_of
from tests.support.engine import Harness

LIBRARY = Path(__file__).parents[1] / "adapters" / "library"
NAMES = ("pfeiffer", "houlsby", "parallel", "norms", "rest")
PROMPT = [1, 5, 9, 23, 42, 7]
VOCAB = 64


def packed(folder: Path, output: Path) -> Path:
    with output.open("w+b") as file:
        pack_source(folder, file)
    return output


@pytest.mark.parametrize("kernels", ["cpu", "torch"])
@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_each_row_is_what_the_library_computes(
    architecture: str, kernels: str, tmp_path: Path
) -> None:
    folder = LIBRARY / architecture
    model = AutoModelForCausalLM.from_pretrained(folder / "base")
    with torch.inference_mode():
        plain = model(input_ids=torch.tensor([PROMPT])).logits[0, -1]
    wanted = {**load_file(folder / "logits.safetensors"), "base": plain}
    harness = Harness(model, kernels=kernels, rows=256, num_blocks=100, max_batch_tokens=8)
    for name in wanted:
        package = None if name == "base" else packed(folder / name, tmp_path / name)
        source = source_of(package) if package else None
        harness.submit(PROMPT, source, max_tokens=2, num_logprobs=VOCAB)
    harness.run()
    for request_id, (name, logits_V) in enumerate(wanted.items()):
        first = harness.tokens[request_id][0]
        assert first.logprobs is not None
        ours = torch.tensor([logprob for _, logprob in sorted(first.logprobs.top)])
        torch.testing.assert_close(ours, logits_V.log_softmax(-1), rtol=0, atol=1e-4)
        assert name == "base" or (logits_V - plain).abs().max() > 0.1


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    return Path(shutil.copytree(LIBRARY / "llama" / "norms", tmp_path / "adapter"))


def refusal(folder: Path) -> str:
    with pytest.raises(PackageError) as caught:
        packed(folder, folder / "out")
    return str(caught.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"use_gating": True},
            "'use_gating' = True is not supported: its gate is a mean",
        ),
        ({"phm_layer": True}, "'phm_layer' = True is not supported"),
        ({"inv_adapter": "nice"}, "'inv_adapter' = 'nice' is not supported"),
        ({"ln_before": True}, "'ln_before' = True is not supported"),
        ({"original_ln_after": False}, "'original_ln_after' = False is not supported"),
        ({"non_linearity": "maxout"}, "non_linearity is 'maxout'; expected one of gelu"),
        ({"residual_before_ln": "post_add"}, "residual_before_ln is 'post_add'; expected true or"),
        ({"scaling": "wide"}, "scaling is 'wide'; expected a number, 'learned' or"),
        ({"scaling": "learned"}, "has no scaling"),
        ({"ln_after": False}, "adapter_norm_after.bias is not part of the bottleneck"),
        ({"of_a_later_version": 1}, "'of_a_later_version' = 1 is not supported"),
        ({"architecture": "prefix_tuning"}, "'architecture' = 'prefix_tuning' is not sup"),
    ],
)
def test_a_field_that_is_not_served_is_named(
    adapter: Path, changes: dict[str, Any], message: str
) -> None:
    path = adapter / "adapter_config.json"
    config = json.loads(path.read_text())
    config["config"] |= changes
    path.write_text(json.dumps(config))
    assert message in refusal(adapter)


@pytest.mark.parametrize(
    ("ending", "shape", "message"),
    [
        ("adapter_down.0.weight", None, "has no adapter_down.0.weight"),
        ("adapter_up.weight", [4, 32], "expected (32, 4)"),
        ("adapter_down.0.bias", [5], "expected (4,)"),
        ("adapter_down.0.weight", [128], "is not 2-D"),
    ],
)
def test_a_tensor_that_does_not_fit_is_named(
    adapter: Path, ending: str, shape: list[int] | None, message: str
) -> None:
    path = adapter / "adapter.safetensors"
    tensors = load_file(path)
    name = min(name for name in tensors if name.endswith(ending))
    del tensors[name]
    save_file(tensors if shape is None else tensors | {name: torch.ones(shape)}, path)
    assert message in refusal(adapter)


def test_it_has_to_fit_the_base(adapter: Path) -> None:
    with open_package(adapter) as (_, package):
        contents = package.contents
    sites = {
        f"model.layers.{layer}.{name}": (8, 32)
        for layer in (0, 1)
        for name in ("self_attn.o_proj", "mlp.down_proj")
    }
    check_fit(contents, sites)
    with pytest.raises(PackageError, match="it has width 32, but the base model has 16"):
        check_fit(contents, dict.fromkeys(sites, (8, 16)))
    with pytest.raises(PackageError, match=r"has no layer model\.layers\.0"):
        check_fit(contents, {})


def test_a_package_of_it_can_be_unpacked_and_packed_again(adapter: Path, tmp_path: Path) -> None:
    from loramux_adapters import unpack

    first = packed(adapter, tmp_path / "first")
    with first.open("rb") as file:
        unpack(file, read_package(file, first.stat().st_size), tmp_path / "again")
    assert packed(tmp_path / "again", tmp_path / "second").read_bytes() == first.read_bytes()
