"""MiSS as plain LoRA.

Method: Kang and Yin, "MiSS: Revisiting the Trade-off in LoRA with an Efficient Shard-Sharing
Structure" (arXiv 2409.15371). Fields and tensors: `peft.tuners.miss`, PEFT 0.21.

The inputs of a layer are split into chunks of R, the last padded with zeros, and summed; a block of
R rows multiplies the sum. So A has a one where input and row agree modulo R. The mini form has a
block of fewer columns, which is repeated over the outputs. The form bat has a square block for each
R outputs: their weights are multiplied by it, and it is added to the result, which is a full-rank
update.

Legend: R rank, I input features, O output features, M columns of a mini block.
"""

import numpy as np

from loramux_adapters.errors import PackageError
from loramux_adapters.fields import integer
from loramux_adapters.weights.base_weight import features
from loramux_adapters.weights.fold import Layer, Method, Parts, shaped
from loramux_adapters.weights.folded_fields import folded_fields
from loramux_adapters.weights.spectrum import Factors, Wide

_MAX_WIDTH = 1 << 20


def _miss(layer: Layer, parts: Parts) -> tuple[Factors, float]:
    inputs, outputs = features(layer.base, layer.module, "MiSS")
    width = outputs
    if layer.config.get("init_weights") == "mini":
        width = integer(layer.config, "mini_r", 1, 1, _MAX_WIDTH)
        if outputs % width:
            raise PackageError(
                f"adapter_config.json: mini_r is {width}, which does not divide the {outputs} "
                f"outputs of module {layer.module}",
                "INVALID_ADAPTER_CONFIG",
            )
    block_RM = shaped(layer, parts, ".miss_block", layer.rank, width)
    a_RI = (np.arange(inputs) % layer.rank == np.arange(layer.rank)[:, None]).astype(np.float64)
    return (np.tile(block_RM, (1, outputs // width)).T, a_RI), 0.0


def _bat(layer: Layer, parts: Parts, weight_OI: Wide) -> Wide:
    outputs, inputs = weight_OI.shape
    size = layer.rank
    if outputs % size or inputs % size:
        raise PackageError(
            f"adapter_config.json: r is {size}, which does not divide the {inputs} inputs and "
            f"{outputs} outputs of module {layer.module}",
            "INVALID_ADAPTER_CONFIG",
        )
    blocks = shaped(layer, parts, ".miss_block", outputs // size, size, size)
    in_blocks = weight_OI.reshape(outputs // size, size, inputs // size, size)
    added: Wide = np.einsum("orik,okl->oril", in_blocks, blocks) + blocks[:, :, None]
    return weight_OI + added.reshape(weight_OI.shape)


MISS = Method(
    folded_fields({"r", "mini_r", "init_weights"}, {"miss_dropout"}, absent={"fan_in_fan_out"}),
    None,
    64,
    (".miss_block",),
    _miss,
    _bat,
    lambda config: config.get("init_weights") == "bat",
    bias_only="MiSS_only",
    keeps_dtype=True,
)
