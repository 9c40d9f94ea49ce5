"""Virtual tokens in memory, of adapters and images, and where a step puts them.

Legend: V virtual tokens, K width of an embedding, J heads that keep something, D width of a key, E
width of a value.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, slots=True)
class Virtual:
    """What stands before every prompt of one adapter, in float32, or for an image in a prompt."""

    embedding_VK: "torch.Tensor | None" = None
    keys: "Mapping[int, torch.Tensor]" = field(default_factory=dict)
    """Number of a layer -> what it keeps, [V, J, D]; likewise values, [V, J, E]."""
    values: "Mapping[int, torch.Tensor]" = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class VirtualRun:
    """Virtual tokens of one request that a step puts in their place."""

    virtual: Virtual
    first: int
    """Number of the first of them."""
    place_V: "torch.Tensor"
    """Row of the batch for each embedding, or slot of the KV cache for keys and values; int64."""

    @property
    def embeddings(self) -> "torch.Tensor":
        """Their embeddings, [·, K]."""
        assert self.virtual.embedding_VK is not None
        return self.virtual.embedding_VK[self.numbers]

    @property
    def numbers(self) -> slice:
        """Which of the virtual tokens they are."""
        return slice(self.first, self.first + len(self.place_V))
