"""Groups of linear layers that share an input, found by running the model.

Modelling code is not read: layers that are called with the same tensor belong together.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle
from transformers import PreTrainedModel

from loramux_server.lora.packed import LayerPlace
from loramux_server.models.attention import AttentionBridge
from loramux_server.models.packed_linear import PackedLinear, PackedPart
from loramux_server.models.quantized import is_linear
from loramux_server.models.recurrent.recurrent import Recurrent
from loramux_server.models.step import Step

_NUM_TOKENS = 7
"""Unlike common numbers of heads, so that the dimensions cannot be confused."""


@dataclass(frozen=True, slots=True)
class Probed:
    """What a run of a model has shown."""

    calls: list[tuple[str, torch.Tensor]]
    """(name, input) for each linear layer, in call order. Inputs are kept alive so that two of them
    are the same object only if they are the same tensor."""
    vocab_size: int
    """Number of logits."""
    plain: Mapping[str, int]
    """Other modules with parameters of their own that map one tensor to one -> the token dimension
    of both. Modules inside recurrent layers are excluded: they see a batch in parts."""
    recurrent: Recurrent
    """The recurrent layers."""
    called: frozenset[nn.Module]
    """The modules that run for text, except linear layers."""
    idle: frozenset[str]
    """Submodels that do not run for text, such as vision towers."""


def probe(module: PreTrainedModel, bridge: AttentionBridge) -> Probed:
    """Run `module` on a few tokens with our attention."""
    output_layer = module.get_output_embeddings()
    calls: list[tuple[str, torch.Tensor]] = []
    axes: dict[str, set[int | None]] = {}
    called: set[nn.Module] = set()
    hooks: list[RemovableHandle] = []
    for name, layer in module.named_modules():
        hooks.append(layer.register_forward_pre_hook(lambda layer, _: called.add(layer)))
        if is_linear(layer) and layer is not output_layer:
            hooks.append(layer.register_forward_pre_hook(_recorder(calls, name)))
        elif next(layer.parameters(recurse=False), None) is not None:
            hooks.append(
                layer.register_forward_hook(_judge(axes.setdefault(name, set())), with_kwargs=True)
            )
    try:
        module.set_attn_implementation(bridge.name)
        output = _run(module)
    finally:
        for hook in hooks:
            hook.remove()
    recurrent = Recurrent.found(module, bridge.attending, lambda: _run_again(module, bridge))
    plain = {
        name: axis
        for name, found in axes.items()
        if len(found) == 1
        for axis in found
        if axis is not None and not recurrent.has(name)
    }
    idle = frozenset(
        name
        for name, part in module.named_modules()
        if isinstance(part, PreTrainedModel) and called.isdisjoint(part.modules())
    )
    # Without linear layers: a reference would keep their memory after they are replaced.
    others = frozenset(part for part in called if not is_linear(part))
    return Probed(calls, output.logits.shape[-1], plain, recurrent, others, idle)


def _run(module: PreTrainedModel) -> Any:  # noqa: ANN401
    tokens = torch.zeros(1, _NUM_TOKENS, dtype=torch.long, device=module.device)
    positions = torch.arange(_NUM_TOKENS, device=module.device)[None]
    with torch.inference_mode():
        return module(input_ids=tokens, position_ids=positions, use_cache=False)


def _run_again(module: PreTrainedModel, bridge: AttentionBridge) -> None:
    bridge.shapes.clear()  # else each layer would seem to attend twice
    _run(module)


def _recorder(
    calls: list[tuple[str, torch.Tensor]], name: str
) -> Callable[[nn.Module, tuple[torch.Tensor, ...]], None]:
    def record(_: nn.Module, arguments: tuple[torch.Tensor, ...]) -> None:
        calls.append((name, arguments[0]))

    return record


def _judge(axes: set[int | None]) -> Callable[..., None]:
    def judge(_: nn.Module, arguments: tuple[Any, ...], named: dict[str, Any], y: object) -> None:
        is_alone = len(arguments) == 1 and not named
        axis = _token_axis(y)
        axes.add(axis if is_alone and axis == _token_axis(arguments[0]) else None)

    return judge


def _token_axis(tensor: object) -> int | None:
    """Return the dimension of the probe's tokens, after that of sequences if there is one."""
    if not isinstance(tensor, torch.Tensor):
        return None
    axes = [axis for axis, size in enumerate(tensor.shape[:3]) if size == _NUM_TOKENS]
    return axes[0] if len(axes) == 1 and (axes[0] == 0 or len(tensor) == 1) else None


def pack(
    module: PreTrainedModel, calls: list[tuple[str, torch.Tensor]], step: Step
) -> tuple[list[PackedLinear], dict[str, LayerPlace]]:
    """Replace the layers of `calls` by packed ones; siblings with the same input form a group.

    No reference to a replaced layer is kept, so packing needs the memory of one more group, not of
    a second model.

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
