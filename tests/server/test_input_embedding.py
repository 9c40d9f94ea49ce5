"""A weight that embeddings and output layer share: once in memory, the same to the last bit."""

import gc

import pytest
import torch
from torch import nn
from transformers import PreTrainedModel

from loramux_server.engine.model_runner import ModelRunner
from loramux_server.kernels.backend import choose_backend
from loramux_server.kernels.cpu.register_tile import PANEL
from loramux_server.kernels.weight_storage import Quantization
from loramux_server.models.base_layers import BaseLayers
from loramux_server.models.base_model import BaseModel
from loramux_server.models.decoder_model import prepare
from tests.support.engine import Harness
from tests.support.models import tiny_model

VOCAB, WIDTH = 4101, 64
"""Far larger than all else in the model, and no whole number of panels."""
WEIGHTS = VOCAB * WIDTH
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
TOKENS = torch.tensor([[VOCAB - 1, 3, 40, 3, 0, 17]])


def saved_as(dtype: str, architecture: str = "llama", *, is_tied: bool = True) -> PreTrainedModel:
    """Return a model in float32 whose weights were saved in `dtype`."""
    width = "n_embd" if architecture == "gpt2" else "hidden_size"
    sizes = (
        {width: WIDTH, "word_embed_proj_dim": WIDTH} if architecture == "opt" else {width: WIDTH}
    )
    model = tiny_model(architecture, vocab_size=VOCAB, tie_word_embeddings=is_tied, **sizes)
    model.to(DTYPES[dtype]).float()
    return model


def attached(model: PreTrainedModel, quantization: Quantization = Quantization.NONE) -> BaseModel:
    """Return `model` as it is when the kernels of a CPU have taken its weights."""
    base = prepare(model)
    backend = choose_backend("cpu", base.device, quantization)
    ModelRunner(base, backend, num_slots=8, adapter_memory=1 << 20)
    return base


def embedded(model: PreTrainedModel) -> torch.Tensor:
    with torch.inference_mode():
        y: torch.Tensor = model.get_input_embeddings()(TOKENS)
    return y


def vocabulary_bytes() -> int:
    """Return the bytes of everything that is as large as a weight for all of the vocabulary."""
    gc.collect()
    tensors = [x for x in gc.get_objects() if issubclass(type(x), torch.Tensor)]
    storages = {x.untyped_storage().data_ptr(): x.untyped_storage().nbytes() for x in tensors}
    return sum(size for size in storages.values() if size >= 2 * WEIGHTS)


@pytest.mark.parametrize(
    ("dtype", "is_tied", "item_bytes"),
    [
        ("float32", True, 4), ("bfloat16", True, 2), ("float16", True, 2),
        ("float32", False, 4 + 4), ("bfloat16", False, 4 + 2),
    ],
)  # fmt: skip
def test_no_weight_is_in_memory_twice(dtype: str, is_tied: bool, item_bytes: int) -> None:
    before = vocabulary_bytes()
    harness = Harness(
        saved_as(dtype, is_tied=is_tied), kernels="cpu", num_blocks=8, rows=8, max_running=2
    )
    harness.submit(TOKENS[0].tolist(), max_tokens=2)
    harness.run()
    used = vocabulary_bytes() - before
    assert 0 <= used - item_bytes * WEIGHTS < item_bytes * PANEL * WIDTH  # the last is whole


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("architecture", ["llama", "gpt2", "gemma3", "opt"])
def test_every_bit_is_what_it_was(architecture: str, dtype: str) -> None:
    model = saved_as(dtype, architecture)
    weight = model.get_input_embeddings().weight.clone()
    wanted = embedded(model)
    base = attached(model)
    assert len(base.module.get_input_embeddings().weight) < VOCAB
    assert torch.equal(embedded(base.module), wanted)
    layers = BaseLayers(base)
    for name in (layers.vocabulary.embedding, layers.vocabulary.output):
        for start, end in ((0, VOCAB), (5, 40), (VOCAB - 3, VOCAB), (VOCAB - 3, VOCAB + 1)):
            assert torch.equal(layers.rows(name, start, end), weight[start:end])


@pytest.mark.parametrize("quantization", [Quantization.BFLOAT16, Quantization.INT8])
def test_an_output_layer_that_rounds_leaves_embeddings_as_they_are(
    quantization: Quantization,
) -> None:
    model = saved_as("float32")
    wanted = embedded(model)
    base = attached(model, quantization)
    assert torch.equal(embedded(base.module), wanted)
    assert len(base.module.get_input_embeddings().weight) == VOCAB


def test_rounding_to_what_weights_are_already_leaves_them_once() -> None:
    model = saved_as("bfloat16")
    wanted = embedded(model)
    base = attached(model, Quantization.BFLOAT16)
    assert torch.equal(embedded(base.module), wanted)
    assert len(base.module.get_input_embeddings().weight) < VOCAB


class Numbered(nn.Embedding):
    """Makes more of a token than its row."""

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return super().forward(tokens) + tokens[..., None] / VOCAB


def test_embeddings_that_are_more_than_rows_keep_their_weight() -> None:
    model = saved_as("float32")
    weight = model.get_input_embeddings().weight
    numbered = Numbered(VOCAB, WIDTH, padding_idx=VOCAB - 1)
    numbered.weight = weight
    model.set_input_embeddings(numbered)
    wanted = embedded(model)
    base = attached(model)
    assert base.replaceable.vocabulary.is_tied
    assert torch.equal(embedded(base.module), wanted)
    assert numbered.padding_idx == VOCAB - 1
