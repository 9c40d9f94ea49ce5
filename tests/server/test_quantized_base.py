"""Bases whose linear layers are quantized, with adapters on top that are not."""

import copy
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from loramux_server.engine.model_part import load_model
from loramux_server.kernels.backend import choose_backend
from loramux_server.kernels.weight_storage import Quantization
from loramux_server.models.decoder_model import prepare
from loramux_server.models.loading import load_base_model
from loramux_server.models.quantized import torchao_config
from loramux_server.models.servable import UnservableModelError
from loramux_server.wire.engine_config import EngineConfig
from tests.parity.test_peft import cases, check
from tests.support.engine import Harness
from tests.support.models import VOCAB, tiny_model
from tests.support.quantized import (
    Linear8bitLt,
    by_bitsandbytes,
    by_torchao,
    save_quantized,
    with_stand_ins,
)

INT8 = by_torchao("Int8WeightOnlyConfig")
FP8 = by_torchao("Float8WeightOnlyConfig")
INT8_INPUTS = by_torchao("Int8DynamicActivationInt8WeightConfig")
Make = Callable[[], Any]

pytestmark = pytest.mark.filterwarnings(
    "ignore::DeprecationWarning:torchao.*", "ignore::UserWarning:bitsandbytes.*"
)


def loaded(folder: Path) -> PreTrainedModel:
    """Return the model as transformers loads it."""
    model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(str(folder), dtype="auto")
    return model.eval()


def assert_equals_peft(
    harness: Harness, model: PreTrainedModel, folder: Path, tolerance: float = 1e-4
) -> None:
    """Hold a mixed batch to what PEFT makes of `model`."""
    requests = cases(model, folder, num_requests=13)
    for case in requests:
        harness.submit(
            case.prompt, case.source, max_tokens=len(case.expected.tokens), num_logprobs=VOCAB
        )
    harness.run()
    for request_id, case in enumerate(requests):
        check(harness, request_id, case, tolerance)


@pytest.mark.parametrize("kernels", ["torch", "cpu"])
@pytest.mark.parametrize("architecture", ["llama", "llama-bias", "gpt2"])
def test_layers_of_another_class_compute_on_their_own(
    architecture: str, kernels: str, tmp_path: Path
) -> None:
    model = with_stand_ins(tiny_model(architecture))
    base = prepare(copy.deepcopy(model))
    assert not any(group.is_plain for group in base.groups)
    assert (base.stack is not None) == (architecture != "gpt2")
    assert_equals_peft(Harness(base, kernels=kernels, rows=128), model, tmp_path)


@pytest.mark.parametrize("kernels", ["torch", "cpu"])
@pytest.mark.parametrize(
    ("architecture", "shape", "make", "tolerance"),
    [
        pytest.param("llama", {}, INT8, 1e-4, id="torchao-int8"),
        pytest.param("llama", {}, FP8, 1e-4, id="torchao-fp8"),
        # Mostly 1e-5 apart; now and then one of its roundings to bfloat16 goes another way.
        pytest.param("gpt2", {"n_embd": 64}, by_bitsandbytes(4), 2e-2, id="bitsandbytes-4"),
    ],
)
def test_a_base_that_was_saved_quantized_equals_peft_on_it(
    architecture: str,
    shape: dict[str, int],
    make: Make,
    tolerance: float,
    kernels: str,
    tmp_path: Path,
) -> None:
    folder = save_quantized(tiny_model(architecture, **shape), tmp_path, make())
    base = load_base_model(str(folder), device="cpu")
    assert not any(group.is_plain for group in base.groups)
    harness = Harness(base, kernels=kernels, rows=128)
    assert_equals_peft(harness, loaded(folder), tmp_path, tolerance)


@pytest.mark.parametrize("make", [INT8_INPUTS, by_bitsandbytes(8)], ids=["torchao", "bitsandbytes"])
def test_layers_that_round_their_inputs_may_differ_by_such_roundings(
    make: Make, tmp_path: Path
) -> None:
    folder = save_quantized(tiny_model("llama"), tmp_path, make())
    base = load_base_model(str(folder), device="cpu")
    assert 1e-3 < base.check.difference(base.stack) < base.check.tolerance < 0.11
    harness = Harness(base, kernels="torch", rows=64)
    harness.submit(range(3, 20), max_tokens=1)
    harness.run()
    with torch.inference_mode():
        logits_V = loaded(folder)(input_ids=torch.arange(3, 20)[None]).logits[0, -1]
    assert harness.output(0) == [int(logits_V.argmax())]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_what_was_saved_in_16_bits_is_served_in_16_bits(dtype: torch.dtype, tmp_path: Path) -> None:
    folder = save_quantized(tiny_model("llama"), tmp_path, INT8(), dtype)
    base = load_base_model(str(folder), device="cpu")
    assert base.dtype == dtype
    assert {group.dtype for group in base.groups} == {dtype}
    with pytest.raises(
        UnservableModelError, match=r"to compute in b?float16, but dtype is float32"
    ):
        load_base_model(str(folder), device="cpu", dtype="float32")


@pytest.mark.parametrize(
    ("quantization", "make"), [(Quantization.INT8, INT8), (Quantization.FP8, FP8)]
)
def test_quantization_is_done_by_torchao_for_kernels_that_do_not_round(
    quantization: Quantization, make: Make, tmp_path: Path
) -> None:
    wanted = make()
    tiny_model("llama").save_pretrained(str(tmp_path))
    config = EngineConfig(
        model=str(tmp_path), device="cpu", kernels="torch", quantization=quantization
    )
    base = load_model(config)
    assert not any(group.is_plain for group in base.groups)
    model = AutoModelForCausalLM.from_pretrained(str(tmp_path), quantization_config=wanted)
    harness = Harness(base, kernels="torch", quantization=quantization, rows=128)
    assert_equals_peft(harness, model.eval(), tmp_path)


def test_quantization_is_left_to_kernels_that_round(tmp_path: Path) -> None:
    tiny_model("llama").save_pretrained(str(tmp_path))
    base = load_base_model(str(tmp_path), device="cpu", quantization=Quantization.INT8)
    assert all(group.is_plain for group in base.groups)
    plain = load_base_model(str(tmp_path), device="cpu")
    assert base.fingerprint == plain.fingerprint


def test_all_that_can_be_quantized_may_be(tmp_path: Path) -> None:
    """The embedding and the layer that makes logits as well."""
    config = INT8()
    config.include_input_output_embeddings = True
    model = tiny_model("llama", tie_word_embeddings=False)
    folder = save_quantized(model, tmp_path, config)
    own = loaded(folder)
    assert type(own.get_output_embeddings().weight) is not torch.nn.Parameter
    base = load_base_model(str(folder), device="cpu")
    assert_equals_peft(Harness(base, kernels="cpu", rows=128), own, tmp_path)


def test_the_fingerprint_distinguishes_quantized_weights(tmp_path: Path) -> None:
    prints = [
        prepare(tiny_model("llama")).fingerprint,
        prepare(with_stand_ins(tiny_model("llama"))).fingerprint,
    ]
    model = with_stand_ins(tiny_model("llama"))
    factors = next(layer.SCB for layer in model.modules() if isinstance(layer, Linear8bitLt))
    assert isinstance(factors, torch.Tensor)
    factors *= 2
    prints.append(prepare(model).fingerprint)
    assert len(set(prints)) == 3


def test_the_fingerprint_looks_into_tensors_of_torchao(tmp_path: Path) -> None:
    folders = [
        save_quantized(tiny_model("llama", seed=seed), tmp_path / name, make())
        for name, seed, make in (("a", 0, INT8), ("b", 0, INT8), ("c", 0, FP8), ("d", 1, INT8))
    ]
    first, again, *others = (
        load_base_model(str(folder), device="cpu").fingerprint for folder in folders
    )
    assert first == again
    assert len({first, *others}) == 3


def save_plain(architecture: str, folder: Path) -> str:
    tiny_model(architecture).save_pretrained(str(folder))
    return str(folder)


def test_a_base_is_not_quantized_twice(tmp_path: Path) -> None:
    folder = save_quantized(tiny_model("llama"), tmp_path, INT8())
    for kernels in ("cpu", "torch"):
        with pytest.raises(UnservableModelError, match="must be 'none', got 'int8'"):
            load_base_model(
                str(folder), device="cpu", kernels=kernels, quantization=Quantization.INT8
            )


def test_a_base_that_nothing_is_quantized_of_is_refused(tmp_path: Path) -> None:
    INT8()
    path = save_plain("gpt2", tmp_path)
    with pytest.raises(UnservableModelError, match="'int8' changes nothing"):
        load_base_model(path, device="cpu", kernels="torch", quantization=Quantization.INT8)


def test_quantized_layers_are_not_divided(tmp_path: Path) -> None:
    INT8()
    path = save_plain("llama", tmp_path)
    with pytest.raises(UnservableModelError, match="tensor_parallel must be 1"):
        load_base_model(
            path, device="cpu", kernels="torch", quantization=Quantization.INT8, stays_on_host=True
        )


def test_another_way_to_quantize_is_refused_by_name(tmp_path: Path) -> None:
    path = save_plain("llama", tmp_path)
    INT8()
    with pytest.raises(UnservableModelError, match="'bfloat16' needs kernels 'cpu'"):
        load_base_model(path, device="cpu", kernels="torch", quantization=Quantization.BFLOAT16)
    with pytest.raises(ValueError, match="'fp8' is not supported by kernels 'cpu'"):
        choose_backend("cpu", torch.device("cpu"), Quantization.FP8)


def test_what_torchao_has_to_do_needs_torchao(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torchao", None)
    with pytest.raises(ValueError, match=r"needs torchao \(.*\[quantized\]"):
        torchao_config(Quantization.INT8, torch.device("cpu"))


def test_numbers_of_8_bits_need_a_gpu_that_has_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (8, 6))
    with pytest.raises(ValueError, match=r"capability 8\.9 or later; cuda:1 has 8\.6"):
        torchao_config(Quantization.FP8, torch.device("cuda:1"))
