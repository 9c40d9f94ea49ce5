"""The parameters of a model of which an adapter may bring its own."""

from collections.abc import Mapping
from dataclasses import dataclass

from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from loramux_server.models.packed_linear import features
from loramux_server.models.packing import Probed


@dataclass(frozen=True, slots=True)
class Replaceable:
    """What of a model can be replaced whole, and which modules its tokens go in and out by."""

    shapes: Mapping[str, tuple[int, ...]]
    """Name of a parameter -> its shape, as the model has it."""
    transposed: frozenset[str]
    """Names of the layers whose weight is [in_features, out_features]."""
    axes: Mapping[str, int]
    """Name of a module that is no layer -> the dimension of the tokens in its input and output."""
    embedding: str
    """Name of the module that takes tokens; empty if it takes more than those."""
    output: str
    """Name of the layer that makes logits; empty if it takes more than one tensor."""
    embedding_shape: tuple[int, int]
    """Tokens, and the width of each."""
    output_shape: tuple[int, int]
    """Width of its input, and logits."""
    is_tied: bool
    """Whether these two have one weight."""


def find_replaceable(module: PreTrainedModel, probed: Probed) -> Replaceable:
    """Return what of `module`, which was `probed`, can be replaced."""
    inputs, outputs = module.get_input_embeddings(), module.get_output_embeddings()
    names = {id(part): name for name, part in module.named_modules()}
    embedding, output = names[id(inputs)], names[id(outputs)]
    shapes: dict[str, tuple[int, ...]] = {}
    transposed = set()
    if output not in probed.plain:
        output = ""
    for name in filter(None, [*(name for name, _ in probed.calls), output]):
        layer = module.get_submodule(name)
        if isinstance(layer, Conv1D):
            transposed.add(name)
        wide_in, wide_out = features(layer)
        is_conv = name in transposed
        shapes[f"{name}.weight"] = (wide_in, wide_out) if is_conv else (wide_out, wide_in)
        if getattr(layer, "bias", None) is not None:
            shapes[f"{name}.bias"] = (wide_out,)
    for name in probed.plain:
        for parameter, value in module.get_submodule(name).named_parameters(recurse=False):
            shapes.setdefault(f"{name}.{parameter}", tuple(value.shape))
    is_plain = isinstance(inputs, nn.Embedding) and embedding in probed.plain
    return Replaceable(
        shapes=shapes,
        transposed=frozenset(transposed),
        axes=probed.plain,
        embedding=embedding if is_plain else "",
        output=output,
        embedding_shape=(inputs.weight.shape[0], inputs.weight.shape[1]),
        output_shape=features(outputs),
        is_tied=getattr(outputs, "weight", None) is inputs.weight,
    )
