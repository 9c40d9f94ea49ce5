"""What is recognized in a model, and that nothing else is touched."""

import pytest
import torch

from loramux_server.models.decoder_model import prepare
from loramux_server.models.fused import GatedMlp, RmsNorm
from tests.support.models import tiny_model


@pytest.mark.parametrize(
    ("name", "num_norms", "num_mlps"),
    [("llama", 5, 2), ("qwen2", 5, 2), ("mistral", 5, 2), ("gemma2", 9, 0), ("gpt2", 0, 0)],
)
def test_parts_are_recognized_by_what_they_compute(
    name: str, num_norms: int, num_mlps: int
) -> None:
    base = prepare(tiny_model(name))
    parts = list(base.module.modules())
    if base.stack:
        parts += [part for layer in base.stack.originals for part in layer.modules()]
    assert sum(isinstance(part, RmsNorm) for part in parts) == num_norms
    assert sum(isinstance(part, GatedMlp) for part in parts) == num_mlps


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("name", ["llama", "qwen3"])
def test_models_of_16_bits_are_done_as_one_too(name: str, dtype: torch.dtype) -> None:
    assert prepare(tiny_model(name).to(dtype)).stack


def test_a_norm_of_another_meaning_stays() -> None:
    model = tiny_model("llama")
    norm = model.model.norm
    plain = type(norm).forward

    class HalvingRMSNorm(type(norm)):  # type: ignore[misc]
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return plain(self, x) / 2  # type: ignore[no-any-return]

    norm.__class__ = HalvingRMSNorm
    assert isinstance(prepare(model).module.model.norm, HalvingRMSNorm)


def test_rotary_embeddings_are_replaced_for_this_model_alone() -> None:
    from transformers.models.llama import modeling_llama

    before = modeling_llama.apply_rotary_pos_emb
    stack = prepare(tiny_model("llama")).stack
    assert stack
    attention = stack.originals[0].self_attn
    used = attention.forward.__func__.__globals__["apply_rotary_pos_emb"]  # type: ignore[union-attr]
    assert used is not before
    assert modeling_llama.apply_rotary_pos_emb is before
