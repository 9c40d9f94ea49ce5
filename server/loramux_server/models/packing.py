"""Which linear layers of a model share an input, found by running it, and their groups.

Nothing is read of modelling code: layers that are called with the same tensor belong together.
"""

from collections.abc import Callable

import torch
from torch import nn
from transformers import PreTrainedModel

from loramux_server.lora.packed import LayerPlace
from loramux_server.models.attention import AttentionBridge
from loramux_server.models.packed_linear import PackedLinear, PackedPart
from loramux_server.models.quantized import is_linear
from loramux_server.models.step import Step


def probe(
    module: PreTrainedModel, bridge: AttentionBridge
) -> tuple[list[tuple[str, torch.Tensor]], int]:
    """Run `module` on two tokens with our attention.

    Returns:
        (name, input) for each linear layer, in the order of the calls; the inputs are
        kept so that two of them are the same object only if they are the same tensor. And the
        number of logits.
    """
    output_layer = module.get_output_embeddings()
    calls: list[tuple[str, torch.Tensor]] = []
    hooks = []
    for name, layer in module.named_modules():
        if is_linear(layer) and layer is not output_layer:
            hooks.append(layer.register_forward_pre_hook(_recorder(calls, name)))
    try:
        module.set_attn_implementation(bridge.name)
        tokens = torch.zeros(1, 2, dtype=torch.long, device=module.device)
        positions = torch.arange(2, device=module.device)[None]
        with torch.inference_mode():
            output = module(input_ids=tokens, position_ids=positions, use_cache=False)
    finally:
        for hook in hooks:
            hook.remove()
    return calls, output.logits.shape[-1]


def _recorder(
    calls: list[tuple[str, torch.Tensor]], name: str
) -> Callable[[nn.Module, tuple[torch.Tensor, ...]], None]:
    def record(_: nn.Module, arguments: tuple[torch.Tensor, ...]) -> None:
        calls.append((name, arguments[0]))

    return record


def pack(
    module: PreTrainedModel, calls: list[tuple[str, torch.Tensor]], step: Step
) -> tuple[list[PackedLinear], dict[str, LayerPlace]]:
    """Replace the layers of `calls` by packed ones, siblings with one input together.

    Nothing here holds a layer that is replaced, so that packing takes the memory of one group more,
    not that of the whole model.

    Raises:
        ValueError: A layer is called twice.
    """
    together: dict[tuple[str, int], list[str]] = {}
    dtypes = {}
    for name, x in calls:
        together.setdefault((name.rpartition(".")[0], id(x)), []).append(name)
        dtypes[name] = x.dtype
    groups: list[PackedLinear] = []
    places: dict[str, LayerPlace] = {}
    for names in together.values():
        for name in names:
            if names.count(name) > 1 or name in places:
                raise ValueError(f"layer {name} is used twice in one step")
        layers = [module.get_submodule(name) for name in names]
        packed = PackedLinear(layers, len(groups), step, dtypes[names[0]])
        for part, name in enumerate(names):
            places[name] = LayerPlace(len(groups), part)
            module.set_submodule(name, PackedPart(packed, part))
        groups.append(packed)
    return groups, places
