"""Quantized bases with the kernels of a GPU: adapters go on top of what their layers compute."""

import copy
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedModel

from loramux_server.kernels.gpu.plan import Plan
from loramux_server.lora.extended_slab import ExtendedSlab
from loramux_server.lora.slab import GroupShape
from loramux_server.models.decoder_model import prepare
from tests.parity.test_peft import Case, check
from tests.support.adapters import expected, pack_source, save_adapter, with_adapter
from tests.support.engine import Harness
from tests.support.models import VOCAB, tiny_model
from tests.support.quantized import Linear8bitLt, by_torchao, save_quantized, with_stand_ins

pytestmark = pytest.mark.filterwarnings(
    "ignore::RuntimeWarning"  # numpy in the interpreter, of rows that stand for no token
)


@pytest.fixture(autouse=True)
def single_precision(device: torch.device) -> None:
    if device.type == "cuda":
        torch.backends.cuda.matmul.allow_tf32 = False


@pytest.fixture(params=[1 << 20, -1], ids=["merged", "gathered"])
def spare_rows(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    """Rows that a matmul may read for nobody: with as many as there are it goes on through A."""
    rows: int = request.param
    of = Plan.of
    monkeypatch.setattr(Plan, "of", lambda device: replace(of(device), max_spare_rows=rows))
    return rows


def assert_equals_peft(model: PreTrainedModel, device: torch.device, folder: Path) -> None:
    """Hold a batch of the base and two adapters, prompts and then decode, to PEFT on `model`."""
    requests = [Case([5, 6, 7], None, expected(model, [5, 6, 7], 2))]
    for rank in (4, 20):
        saved = save_adapter(
            model, folder / str(rank), seed=rank, r=rank, target_modules="all-linear"
        )
        prompt = list(range(3, 3 + rank // 2))
        source = pack_source(saved, folder / f"{rank}.package")
        requests.append(Case(prompt, source, expected(with_adapter(model, saved), prompt, 2)))
    base = prepare(copy.deepcopy(model).to(device))
    harness = Harness(base, kernels="triton", rows=64)
    for case in requests:
        harness.submit(case.prompt, case.source, max_tokens=2, num_logprobs=VOCAB)
    harness.run()
    for request_id, case in enumerate(requests):
        check(harness, request_id, case)


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_layers_of_another_class_equal_peft_on_them(
    architecture: str, device: torch.device, tmp_path: Path
) -> None:
    assert_equals_peft(with_stand_ins(tiny_model(architecture)), device, tmp_path)


def test_plain_layers_beside_quantized_ones_still_go_on_through_a(
    device: torch.device, tmp_path: Path, spare_rows: int
) -> None:
    """As in a base of which some layers were not to be converted."""
    del spare_rows
    model = tiny_model("llama")
    for name in ("self_attn.k_proj", "mlp.down_proj"):
        layer = model.get_submodule(f"model.layers.0.{name}")
        assert isinstance(layer, nn.Linear)
        model.set_submodule(f"model.layers.0.{name}", Linear8bitLt(layer))
    base = prepare(copy.deepcopy(model))
    assert [group.is_plain for group in base.groups] == [False, True, True, False, *[True] * 4]
    assert_equals_peft(model, device, tmp_path)


@pytest.mark.parametrize("name", ["Int8WeightOnlyConfig", "Float8WeightOnlyConfig"])
def test_a_base_of_torchao_equals_peft_on_it(
    name: str, device: torch.device, tmp_path: Path
) -> None:
    folder = save_quantized(tiny_model("llama"), tmp_path, by_torchao(name)())
    assert_equals_peft(AutoModelForCausalLM.from_pretrained(str(folder)).eval(), device, tmp_path)


Make = Callable[[PreTrainedModel, Path], PreTrainedModel]


def of_torchao(model: PreTrainedModel, folder: Path) -> PreTrainedModel:
    config = by_torchao("Int8WeightOnlyConfig")()
    path = str(save_quantized(model, folder, config, torch.float16))
    quantized: PreTrainedModel = AutoModelForCausalLM.from_pretrained(path)
    return quantized.eval()


def of_stand_ins(model: PreTrainedModel, folder: Path) -> PreTrainedModel:
    del folder
    return with_stand_ins(model.half())


@pytest.mark.parametrize("make", [of_torchao, of_stand_ins])
def test_half_precision_stays_close_to_peft(
    make: Make, device: torch.device, tmp_path: Path
) -> None:
    model = make(tiny_model("llama"), tmp_path)
    assert model.dtype == torch.float16
    saved = save_adapter(model, tmp_path / "a", seed=1, r=8, target_modules="all-linear")
    source = pack_source(saved, tmp_path / "a.package")
    prompt = list(range(3, 23))
    reference = expected(with_adapter(model, saved), prompt, 1).logprobs[0]
    harness = Harness(prepare(copy.deepcopy(model).to(device)), kernels="triton", rows=32)
    harness.submit(prompt, source, max_tokens=1, num_logprobs=VOCAB)
    harness.run()
    (token,) = harness.tokens[0]
    assert token.logprobs is not None
    ours = torch.tensor([logprob for _, logprob in sorted(token.logprobs.top)])
    epsilon = torch.finfo(torch.float16).eps
    assert (ours - reference).abs().max() < 16 * epsilon * reference.abs().max()


def test_there_is_no_room_for_base_weights_that_lie_elsewhere(device: torch.device) -> None:
    shapes = [GroupShape(16, (8, 4, 4)), GroupShape(8, (16,))]
    slab = ExtendedSlab(shapes, 40, device, torch.float16, is_plain=[False, True])
    slab.place(1, torch.zeros(16, 8, dtype=torch.float16, device=device))
    assert slab.extended[0] is None
    extended: Any = slab.extended[1]
    assert extended.shape == (16 + 40, 8)
    assert [rows.shape for rows in slab.a] == [(3 * 40, 16), (40, 8)]
    assert [rows.shape for rows in slab.b] == [(40, 16), (40, 16)]
