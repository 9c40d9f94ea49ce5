"""A base model of which each of several processes holds a part; see `loramux_server.lora.shard`."""

from dataclasses import replace

from loramux_server.kernels.backend import DEFINITIONS
from loramux_server.kernels.shard_group import sharded
from loramux_server.lora.shard import Shard
from loramux_server.models.base_model import BaseModel, UnservableModelError


def shard_model(model: BaseModel, shard: Shard) -> BaseModel:
    """Return what `shard` has of `model`, which is changed in place.

    Embeddings, norms and the output layer stay whole. The processes with the other shards do the
    same at the same time: at the end all of them check what they compute together.

    Raises:
        UnservableModelError: Its layers cannot be divided so.
    """
    if model.stack is None:
        raise UnservableModelError(
            f"tensor_parallel is {shard.count}, but only layers like those of Llama, Mistral and "
            f"Qwen are divided, and {model.architecture} has others; 1 serves it"
        )
    try:
        model.stack.cut(shard)
    except ValueError as error:
        raise UnservableModelError(f"{model.architecture}: {error}") from None
    model.step.backend = sharded(DEFINITIONS)
    difference = model.check.difference(model.stack)
    if not difference <= model.check.tolerance:  # so that NaN is refused
        raise UnservableModelError(
            f"{model.architecture} computes something else in {shard.count} processes than in one: "
            f"logits differ by {difference:.2g} of their spread, and at most "
            f"{model.check.tolerance:.2g} may be rounding"
        )
    return replace(model, shard=shard)
