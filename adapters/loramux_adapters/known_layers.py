"""What packing an adapter needs to know about the base model's layers."""

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from loramux_adapters.base import BaseFolder


class KnownLayers(Protocol):
    """A known base model: its folder, or the model that is served."""

    @property
    def folder(self) -> "BaseFolder | None":
        """The folder with its weights; None if there is none at hand."""

    def features_of(self, module: str) -> tuple[int, int] | None:
        """Return (in_features, out_features) of the layer `module`; None if there is none."""

    def layer_names(self) -> Iterable[str]:
        """Return the names of all layers."""


def features_like(module: str, layers: Mapping[str, tuple[int, int]]) -> tuple[int, int] | None:
    """Return (in_features, out_features) of the layer that an adapter calls `module`.

    Args:
        module: Its name in the class that the adapter was trained on.
        layers: Name of each layer of a base -> its widths.

    Returns:
        The widths of the layers found by `names_like`; None if there are none, or if they differ.
    """
    found = {layers[name] for name in names_like(module, layers)}
    return found.pop() if len(found) == 1 else None


def names_like(module: str, layers: Iterable[str]) -> list[str]:
    """Return those `layers` that an adapter may call `module`.

    Classes for other tasks have other prefixes: `bert.encoder.layer.0.…` and
    `transformer.layers.0.…` are `encoder.layer.0.…` and `model.layers.0.…` elsewhere. So the names
    with the longest common suffix are returned.
    """
    names = list(layers)
    if module in names:
        return [module]
    parts = module.split(".")
    numbers = [place for place, part in enumerate(parts) if part.isdecimal()]
    for start in range(numbers[0] if numbers else min(2, len(parts))):
        end = ".".join(parts[start:])
        if found := [name for name in names if f".{name}".endswith(f".{end}")]:
            return found
    return []
