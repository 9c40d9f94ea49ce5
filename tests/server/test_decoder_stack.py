"""Layers that are done as one: which are, and that it makes no difference."""

import pytest
import torch
from torch import nn

from loramux_server.models.decoder_model import prepare
from loramux_server.models.decoder_stack import DecoderStack
from tests.support.engine import Harness
from tests.support.models import tiny_model
from tests.support.sinks import granite_swa

RECOGNIZED = ("llama", "llama-bias", "qwen2", "qwen3", "mistral")
OTHERS = ("gemma", "gemma2", "gemma3", "gpt2", "gpt-neox", "phi", "qwen3-moe")


@pytest.mark.parametrize("name", RECOGNIZED)
def test_layers_of_the_usual_parts_become_one(name: str) -> None:
    base = prepare(tiny_model(name))
    assert isinstance(base.module.model.layers[0], DecoderStack)
    assert base.stack is base.module.model.layers[0]


@pytest.mark.parametrize("name", OTHERS)
def test_layers_of_other_parts_stay(name: str) -> None:
    assert prepare(tiny_model(name)).stack is None


def test_layers_that_compute_something_else_stay() -> None:
    model = tiny_model("llama")
    layer = model.model.layers[0]
    plain = type(layer).forward

    class Doubled(type(layer)):  # type: ignore[misc]
        def forward(self, *args, **kwargs):
            return 2 * plain(self, *args, **kwargs)

    layer.__class__ = Doubled
    base = prepare(model)
    assert base.stack is None
    assert base.module.model.layers[0] is layer


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_layers_that_turn_queries_and_keys_each_in_its_own_way_stay(dtype: torch.dtype) -> None:
    """Rounding to 16 bits would hide it on sequences as short as those of the self-check."""
    assert prepare(granite_swa(dtype, layer_rope_theta=[1e4, 1e4])).stack
    assert prepare(granite_swa(dtype, layer_rope_theta=[1e4, 1.2e4])).stack is None
    assert prepare(granite_swa(dtype, layer_rope_theta=[1e4, 0])).stack is None


def test_layers_whose_sinks_are_made_anew_stay() -> None:
    model = granite_swa()
    layer = model.model.layers[0].self_attn
    own = layer.sinks.detach()
    del layer.sinks
    layer.__class__ = type("Made", (type(layer),), {"sinks": property(lambda _: 2 * own)})
    assert prepare(model).stack is None


def test_layers_that_are_called_in_another_way_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    def forward(self: DecoderStack, hidden_states: torch.Tensor, **_: object) -> torch.Tensor:
        raise TypeError("a positional argument is missing")

    monkeypatch.setattr(DecoderStack, "forward", forward)
    model = tiny_model("llama")
    layers = list(model.model.layers)
    base = prepare(model)
    assert base.stack is None
    assert list(base.module.model.layers) == layers


def test_the_models_own_layers_are_kept_whole() -> None:
    base = prepare(tiny_model("llama"))
    assert base.stack
    kinds = {type(layer) for layer in base.stack.originals}
    assert len(base.stack.originals) == 2
    assert not kinds & {DecoderStack}


@pytest.mark.parametrize("kernels", ["torch", "cpu"])
@pytest.mark.parametrize("name", [*RECOGNIZED, "granite-swa"])
def test_tokens_are_those_of_the_model_alone(name: str, kernels: str) -> None:
    model = granite_swa() if name == "granite-swa" else tiny_model(name)
    prompts = [[5, 6, 7], list(range(3, 40)), [9], list(range(20, 31))]
    expected = [_greedy(model, prompt, 8) for prompt in prompts]
    harness = Harness(model, kernels=kernels, max_batch_tokens=16)
    # They arrive one after the other, so that prompts and decode share batches.
    ids = []
    for prompt in prompts:
        ids.append(harness.submit(prompt))
        harness.step()
    harness.run()
    assert [harness.output(i) for i in ids] == expected


def _greedy(model: nn.Module, prompt: list[int], count: int) -> list[int]:
    tokens = list(prompt)
    with torch.inference_mode():
        for _ in range(count):
            logits = model(torch.tensor([tokens]), use_cache=False).logits[0, -1]
            tokens.append(int(logits.argmax()))
    return tokens[len(prompt) :]
