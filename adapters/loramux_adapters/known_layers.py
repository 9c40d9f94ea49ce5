"""The layers of a base model, as much as packing an adapter has to know of them."""

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from loramux_adapters.base import BaseFolder


class KnownLayers(Protocol):
    """A base model at hand: the folder of one, or the one that is served."""

    @property
    def folder(self) -> "BaseFolder | None":
        """The folder that holds its weights; None where it is not at hand."""

    def features_of(self, module: str) -> tuple[int, int] | None:
        """Return (in_features, out_features) of the layer `module`; None if there is none."""

    def layer_names(self) -> Iterable[str]:
        """Return the names of its layers."""


def features_like(module: str, layers: Mapping[str, tuple[int, int]]) -> tuple[int, int] | None:
    """Return (in_features, out_features) of the layer that an adapter calls `module`.

    Args:
        module: Its name in the class that the adapter was trained on.
        layers: Name of each layer of a base -> its widths.

    Returns:
        Those of the layer of `names_like`; None if there is none, or they are more than one and
        have other widths.
    """
    found = {layers[name] for name in names_like(module, layers)}
    return found.pop() if len(found) == 1 else None


def names_like(module: str, layers: Iterable[str]) -> list[str]:
    """Return the names of `layers` that an adapter may call `module`.

    Classes for other tasks have other names before that of the layers: `bert.encoder.layer.0.…` and
    `transformer.layers.0.…` are `encoder.layer.0.…` and `model.layers.0.…` elsewhere. So they are
    those whose names end as much like it as any.
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
