"""Loads virtual tokens from the tensors of a package; legend in `virtual.py`."""

from collections.abc import Callable

import torch

from loramux_adapters import PackageError
from loramux_adapters.contents import VirtualTokens
from loramux_adapters.tensorfile import TensorInfo
from loramux_server.lora.virtual import Virtual


def pack_virtual(virtual: VirtualTokens, read: Callable[[TensorInfo], torch.Tensor]) -> Virtual:
    """Return the embeddings, or keys and values, of `virtual`; `read` returns its tensors.

    Raises:
        PackageError: The embeddings, multiplied by their factors, are not finite.
    """
    given_VK = read(virtual.tensor)
    if virtual.has_cache:
        shape = (virtual.count, virtual.num_layers, 2, virtual.num_heads, virtual.head_width)
        keys_LVJD, values_LVJE = given_VK.reshape(shape).permute(2, 1, 0, 3, 4).contiguous()
        # For encoder-decoders PEFT (0.21, `PeftModel.get_prompt`) stores all layers twice, and then
        # gives each decoder layer the tensors of two: the first of them is used.
        layers = [
            virtual.num_sequences * layer % virtual.num_layers
            for layer in range(virtual.num_layers)
        ]
        return Virtual(
            keys={number: keys_LVJD[layer] for number, layer in enumerate(layers)},
            values={number: values_LVJE[layer] for number, layer in enumerate(layers)},
        )
    if virtual.factors:
        columns_VR, rows_RK = (read(factor)[0] for factor in virtual.factors)
        given_VK = given_VK * (columns_VR @ rows_RK)
        if not given_VK.isfinite().all():
            raise PackageError(
                f"tensor {virtual.tensor.name} times the product of its factors is not finite",
                "ADAPTER_NOT_FINITE",
            )
    return Virtual(given_VK[: virtual.count])
