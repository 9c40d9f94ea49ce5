"""The layers of a base model, as much as packing an adapter has to know of them."""

from collections.abc import Iterable
from typing import Protocol


class KnownLayers(Protocol):
    """A base model at hand: the folder of one, or the one that is served."""

    def features_of(self, module: str) -> tuple[int, int] | None:
        """Return (in_features, out_features) of the layer `module`; None if there is none."""

    def layer_names(self) -> Iterable[str]:
        """Return the names of its layers."""
