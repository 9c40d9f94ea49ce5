"""The parameters of a model that adapters can replace."""

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
    """What adapters can replace, and the modules of the vocabulary."""

    shapes: Mapping[str, tuple[int, ...]]
    """Name of a parameter -> its shape in the model."""
    transposed: frozenset[str]
    """Names of the layers whose weight is [in_features, out_features]."""
    axes: Mapping[str, int]
    """Name of a module other than a linear layer -> token dimension of its input and output."""
    vocabulary: BaseVocabulary
    """The embedding and the output layer; a name is empty if that module is not a plain one."""
    width: tuple[int, int]
    """Width of an embedding, and input width of the output layer."""

    @property
    def outer_layers(self) -> Mapping[str, tuple[int, int]]:
        """Name of the embedding and the output layer, if adaptable -> width of input and output.

        The embedding's input width is the number of tokens.
        """
        known = self.vocabulary
        found = {
            known.embedding: (known.num_embeddings, self.width[0]),
            known.output: (self.width[1], known.num_logits),
        }
        return {name: features for name, features in found.items() if name}


def find_replaceable(module: PreTrainedModel, probed: Probed) -> Replaceable:
    """Return what of `module`, of which `probed` is a run, can be replaced."""
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
    """Return the shapes of linear layers' parameters, and the names of transposed layers.

    Args:
        module: The model.
        names: Names of the layers.
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
