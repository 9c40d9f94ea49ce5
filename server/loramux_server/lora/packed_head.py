"""Loads a package's head, with the changes of the base's own head modules.

Legend: R rank, K input width, N output width of a layer.
"""

from collections.abc import Mapping

import torch

from loramux_adapters import LoraModule, Package
from loramux_adapters.contents import Contents, EditKind
from loramux_adapters.head import Head as SavedHead
from loramux_adapters.post_layers import check_head
from loramux_server.lora.head import Head, LayeredHead, LayeredHeads, LayersHead
from loramux_server.lora.packed_edits import Read, check_factor


def pack_head(
    package: Package, heads: LayeredHeads | None, read: Read
) -> Head | LayeredHead | LayersHead | None:
    """Return the head of `package`; None if it has none.

    Args:
        package: The package.
        heads: Heads that the base model supports; None where heads are linear layers.
        read: Reads a tensor of the package.

    Raises:
        PackageError: The base model does not support the head.
    """
    found = package.head
    if found is None:
        return None
    check_head(package.contents, heads.shapes if heads else {})
    if heads is None:
        bias_L = read(found.bias) if found.bias else torch.zeros(found.num_labels)
        return Head(read(found.weight), bias_L)
    if found.activation:
        layers = {number: _layer(found, number, read) for number in range(len(found.weights))}
        return LayersHead(found.task, layers, found.activation)
    parameters = {name: read(tensor) for name, tensor in found.parameters.items()}
    if package.contents.post_layers:
        known = {name: value.cpu() for name, value in heads.known(found.task).items()}
        parameters |= _changed(package.contents.post_layers, known, read)
    return LayeredHead(heads, found.task, parameters)


def _layer(head: SavedHead, number: int, read: Read) -> Head:
    weight_NK = read(head.parameters[f"classifier.{number}.weight"])
    bias = head.parameters.get(f"classifier.{number}.bias")
    return Head(weight_NK, read(bias) if bias else torch.zeros(len(weight_NK)))


def _changed(
    post_layers: Contents, known: Mapping[str, torch.Tensor], read: Read
) -> dict[str, torch.Tensor]:
    """Return the parameters that `post_layers` changes or adds; the base model has `known`."""
    changed: dict[str, torch.Tensor] = {}
    vectors: dict[str, dict[EditKind, torch.Tensor]] = {}
    for edit in post_layers.edits:
        if edit.kind in (EditKind.MAGNITUDE, EditKind.ADDED_BIAS):
            vectors.setdefault(edit.module, {})[edit.kind] = read(edit.tensor)
        else:
            changed[f"{edit.module}.{edit.parameter or 'bias'}"] = read(edit.tensor)
    for module in post_layers.modules:
        of_module = vectors.get(module.module, {})
        weight = f"{module.module}.weight"
        changed[weight] = _merged(
            module, changed.get(weight, known[weight]), of_module.get(EditKind.MAGNITUDE), read
        )
        if EditKind.ADDED_BIAS in of_module:
            bias = f"{module.module}.bias"
            added_N = module.scale * of_module[EditKind.ADDED_BIAS]
            changed[bias] = changed.get(bias, known[bias]) + added_N
    return changed


def _merged(
    module: LoraModule, weight_NK: torch.Tensor, length_N: torch.Tensor | None, read: Read
) -> torch.Tensor:
    """Return a weight with its low-rank change merged, and its rows scaled to DoRA's magnitude."""
    merged_NK = torch.addmm(weight_NK, read(module.b), read(module.a), alpha=module.scale)
    if length_N is None:
        return merged_NK
    factor_N: torch.Tensor = length_N / torch.linalg.vector_norm(merged_NK, dim=1)
    check_factor(module.module, factor_N)
    return merged_NK * factor_N[:, None]
