"""Parts of a model: what can be divided, and that the parts together are the whole."""

import gc
from collections.abc import Iterator
from functools import partial
from types import FunctionType, ModuleType

import pytest
import torch

from loramux_server.lora.shard import Shard
from loramux_server.models.base_model import BaseModel
from loramux_server.models.decoder_model import prepare
from loramux_server.models.servable import UnservableModelError
from loramux_server.models.sharded import moved, shard_model
from tests.support.models import tiny_model
from tests.support.shards import Sums, side_by_side
from tests.support.sinks import gpt_oss, granite_swa


def divided(models: list[BaseModel], sums: Sums) -> list[BaseModel]:
    """Return the shards of a model, of which there is a copy for each."""
    count = len(models)
    return side_by_side(
        [partial(shard_model, model, Shard(i, count)) for i, model in enumerate(models)], sums
    )


@pytest.mark.parametrize("count", [2, 4])
@pytest.mark.parametrize("name", ["llama-bias", "qwen2", "qwen3", "mistral"])
def test_the_parts_together_compute_the_whole(name: str, count: int) -> None:
    models = [prepare(tiny_model(name, num_key_value_heads=4)) for _ in range(count)]
    shards = divided(models, Sums(count))  # the check is part of it
    for index, model in enumerate(shards):
        assert model.shard == Shard(index, count)
        assert {shape.num_heads for shape in model.cache_shapes} == {4 // count}
        for group in model.groups:
            halved, whole = group.shape.row_weights, group.whole.row_weights
            assert whole / count < halved < whole


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_parts_in_16_bits_compute_the_whole_but_for_rounding(dtype: torch.dtype) -> None:
    models = [prepare(tiny_model("qwen3").to(dtype)) for _ in range(2)]
    assert [model.dtype for model in divided(models, Sums(2))] == [dtype, dtype]


def test_sinks_are_divided_as_their_heads_are() -> None:
    shards = divided([prepare(granite_swa()) for _ in range(2)], Sums(2))
    for layer, own in enumerate(granite_swa().model.layers):
        found = [shard.attention.forms[layer].sinks_H for shard in shards]
        parts = [part for part in found if part is not None]
        assert torch.equal(torch.cat(parts), own.self_attn.sinks)


def test_parts_whose_results_are_not_added_up_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.distributed, "all_reduce", lambda _: None)
    with pytest.raises(UnservableModelError, match="different results in 2 processes than in one"):
        shard_model(prepare(tiny_model("llama")), Shard(0, 2))


def test_layers_of_other_parts_are_refused() -> None:
    with pytest.raises(UnservableModelError, match="those of GPT2LMHeadModel in float32 are not"):
        shard_model(prepare(tiny_model("gpt2")), Shard(0, 2))
    with pytest.raises(UnservableModelError, match="those of GptOssForCausalLM in float32 are not"):
        shard_model(prepare(gpt_oss()), Shard(0, 2))


@pytest.mark.parametrize(
    ("changes", "count", "reason"),
    [
        ({}, 4, "2 key and value heads, 4 query heads, 48 MLP columns; expected one of 1, 2"),
        ({"intermediate_size": 46}, 4, "46 MLP columns; expected one of 1, 2"),
        ({"num_attention_heads": 6, "num_key_value_heads": 3, "head_dim": 8}, 2,
         "3 key and value heads, 6 query heads, 48 MLP columns; expected one of 1, 3"),
    ],
    ids=["heads", "mlp", "odd-heads"],
)  # fmt: skip
def test_what_cannot_be_divided_evenly_is_refused_and_left_whole(
    changes: dict[str, int], count: int, reason: str
) -> None:
    model = prepare(tiny_model("llama", **changes))
    with pytest.raises(UnservableModelError, match=f"is {count}, which does not divide") as caught:
        shard_model(model, Shard(0, count))
    assert reason in str(caught.value)
    assert all(group.shape == group.whole for group in model.groups)


def tensors_of(thing: object, seen: set[int]) -> Iterator[torch.Tensor]:
    """Yield every tensor that `thing` holds on to."""
    if id(thing) in seen or isinstance(thing, type | ModuleType | str | bytes):
        return
    seen.add(id(thing))
    if isinstance(thing, torch.Tensor):
        yield thing
    elif isinstance(thing, FunctionType):
        yield from tensors_of(thing.__closure__, seen)
    else:
        for part in gc.get_referents(thing):
            yield from tensors_of(part, seen)


@pytest.mark.parametrize("ties", [True, False])
def test_what_is_moved_is_moved_whole(ties: bool) -> None:
    """There is one device here; tensors of "meta" are as far from it as those of a GPU."""
    model = prepare(tiny_model("qwen3", attention_bias=True, tie_word_embeddings=ties))
    found = list(tensors_of(moved(model, torch.device("meta")), set()))
    assert len(found) > 20
    assert {tensor.device.type for tensor in found} == {"meta"}
