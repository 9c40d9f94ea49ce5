"""What tells that a base model is served wrong, and what it leaves behind."""

from collections.abc import Callable

import pytest
import torch
from torch import nn
from transformers import PreTrainedModel

from loramux_server.models import packed_linear
from loramux_server.models.attention import AttentionBridge
from loramux_server.models.decoder_model import prepare
from loramux_server.models.servable import UnservableModelError
from tests.support.models import tiny_model

Change = Callable[[pytest.MonkeyPatch, PreTrainedModel], None]


def no_positions(monkeypatch: pytest.MonkeyPatch, model: PreTrainedModel) -> None:
    """The forward takes positions and does not hand them on."""
    inner = model.model.forward
    monkeypatch.setattr(model.model, "forward", lambda position_ids=None, **rest: inner(**rest))


def all_rows(monkeypatch: pytest.MonkeyPatch, model: PreTrainedModel) -> None:
    """The forward takes the rows that it is asked for and gives all in order."""
    inner = model.forward

    def forward(input_ids, position_ids=None, use_cache=None, logits_to_keep=0):
        return inner(input_ids=input_ids, position_ids=position_ids, use_cache=use_cache)

    monkeypatch.setattr(model, "forward", forward)


def other_scale(monkeypatch: pytest.MonkeyPatch, _: PreTrainedModel) -> None:
    """Attention does not use the scale of the model."""
    inner = AttentionBridge.__call__

    def attend(*arguments, **rest):
        return inner(*arguments, **rest | {"scaling": 1.0})

    monkeypatch.setattr(AttentionBridge, "__call__", attend)


def other_layers(monkeypatch: pytest.MonkeyPatch, _: PreTrainedModel) -> None:
    """A packed layer does not compute what the layer did."""
    monkeypatch.setattr(
        packed_linear,
        "make_linear",
        lambda weight, bias: lambda x: 1.01 * torch.nn.functional.linear(x, weight, bias),
    )


@pytest.mark.parametrize("change", [no_positions, all_rows, other_scale, other_layers])
def test_a_model_that_would_be_served_wrong_is_refused(
    monkeypatch: pytest.MonkeyPatch, change: Change
) -> None:
    model = tiny_model("llama")
    change(monkeypatch, model)
    with pytest.raises(UnservableModelError, match="than in its own forward"):
        prepare(model)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("architecture", ["llama", "qwen3-moe", "gemma3", "gpt2"])
def test_rounding_is_no_reason_to_refuse(architecture: str, dtype: torch.dtype) -> None:
    assert prepare(tiny_model(architecture).to(dtype)).dtype == dtype


def test_large_logits_are_no_reason_to_refuse() -> None:
    """GPT-2's are all near -100, where a step of bfloat16 is a half."""
    model = tiny_model("gpt2")
    model.lm_head = nn.Linear(32, 97)
    torch.nn.init.constant_(model.lm_head.bias, -100.0)
    assert prepare(model.to(torch.bfloat16))


def test_nothing_is_left_behind() -> None:
    model = prepare(tiny_model("llama"))
    assert model.step.attention is None
    assert not model.attention._keys
    assert not model.attention._values
    assert not model.attention._keys
    # The attention that the check compares with is not the one that serves.
    assert model.module.config._attn_implementation == model.attention.name
