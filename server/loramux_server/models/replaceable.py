"""The parameters of a model of which an adapter may bring its own."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from loramux_adapters.vocabulary import BaseVocabulary
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
    vocabulary: BaseVocabulary
    """Where tokens go in and come out; a name is empty where more than they do."""
    width: tuple[int, int]
    """Of an embedding, and of what logits are made of."""

    @property
    def outer_layers(self) -> Mapping[str, tuple[int, int]]:
        """Name of what can be adapted before and behind the layers -> width of input and output.

        Embeddings take as many inputs as there are tokens.
        """
        known = self.vocabulary
        found = {
            known.embedding: (known.num_embeddings, self.width[0]),
            known.output: (self.width[1], known.num_logits),
        }
        return {name: features for name, features in found.items() if name}


def find_replaceable(module: PreTrainedModel, probed: Probed) -> Replaceable:
    """Return what of `module`, which was `probed`, can be replaced."""
    inputs, outputs = module.get_input_embeddings(), module.get_output_embeddings()
    names = {id(part): name for name, part in module.named_modules()}
    embedding, output = names[id(inputs)], names[id(outputs)]
    if output not in probed.plain:
        output = ""
    layers = [*(name for name, _ in probed.calls), output]
    shapes, transposed = layer_shapes(module, filter(None, layers))
    for name in probed.plain:
        for parameter, value in module.get_submodule(name).named_parameters(recurse=False):
            shapes.setdefault(f"{name}.{parameter}", tuple(value.shape))
    is_plain = isinstance(inputs, nn.Embedding) and embedding in probed.plain
    return Replaceable(
        shapes=shapes,
        transposed=transposed,
        axes=probed.plain,
        vocabulary=BaseVocabulary(
            embedding=embedding if is_plain else "",
            output=output,
            num_embeddings=inputs.weight.shape[0],
            num_logits=features(outputs)[1],
            is_tied=getattr(outputs, "weight", None) is inputs.weight,
        ),
        width=(inputs.weight.shape[1], features(outputs)[0]),
    )


def layer_shapes(
    module: nn.Module, names: Iterable[str]
) -> tuple[dict[str, tuple[int, ...]], frozenset[str]]:
    """Return the shapes of the parameters of linear layers, and names of those that are transposed.

    Args:
        module: The model.
        names: The layers.
    """
    shapes: dict[str, tuple[int, ...]] = {}
    transposed = set()
    for name in names:
        layer: Any = module.get_submodule(name)
        if isinstance(layer, Conv1D):
            transposed.add(name)
        wide_in, wide_out = features(layer)
        is_conv = name in transposed
        shapes[f"{name}.weight"] = (wide_in, wide_out) if is_conv else (wide_out, wide_in)
        if getattr(layer, "bias", None) is not None:
            shapes[f"{name}.bias"] = (wide_out,)
    return shapes, frozenset(transposed)
