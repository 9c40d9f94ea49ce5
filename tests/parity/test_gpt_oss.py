"""gpt-oss: attention sinks, windows in turns, and experts of a form of their own, each as PEFT."""

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftConfig

from loramux_server.models.decoder_model import prepare
from tests.parity.test_experts import serve
from tests.parity.test_methods import cases
from tests.support.sinks import gpt_oss


def lora(**fields: Any) -> LoraConfig:
    return LoraConfig(
        task_type="CAUSAL_LM", init_lora_weights=False,
        **{"r": 5, "lora_alpha": 9, "target_modules": []} | fields,
    )  # fmt: skip


def configs() -> dict[str, PeftConfig]:
    attention = ["q_proj", "k_proj", "v_proj", "o_proj"]
    both = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]
    return {
        "attention": lora(target_modules=attention),
        "attention, dora": lora(target_modules=attention[1:], use_dora=True, use_rslora=True),
        "experts": lora(target_parameters=both),
        "experts of a layer": lora(
            target_modules=attention[:2],
            target_parameters=[f"model.layers.1.{name}" for name in both],
        ),
        "gate and up": lora(target_parameters=both[:1], r=2),
        "down": lora(target_parameters=both[1:], target_modules=attention[3:]),
    }  # fmt: skip


@pytest.mark.parametrize("kernels", ["cpu", "torch"])
def test_every_row_equals_peft_alone(kernels: str, tmp_path: Path) -> None:
    model = gpt_oss()
    serve(model, kernels, cases(model, tmp_path, configs()))


@pytest.mark.filterwarnings(
    "ignore::RuntimeWarning"  # numpy in the interpreter, of rows that stand for no token
)
def test_kernels_of_a_gpu_give_the_same(tmp_path: Path) -> None:
    model = gpt_oss()
    few = {"experts of a layer": configs()["experts of a layer"]}
    serve(model, "triton", cases(model, tmp_path, few))


def test_sinks_and_all_experts_are_found() -> None:
    model = prepare(gpt_oss())
    assert [form.window for form in model.attention.forms.values()] == [8, 0]
    assert all(form.sinks_H is not None for form in model.attention.forms.values())
    assert len(model.experts) == 2
    assert not any(shape.shape.has_halves for shape in model.experts.values())
    assert model.check.difference(None) < 1e-5


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_it_is_served_in_16_bits(dtype: torch.dtype) -> None:
    assert prepare(gpt_oss(dtype)).check.difference(None) < 16 * torch.finfo(dtype).eps
