"""Virtual tokens of adapters and images, and where a step inserts them.

Legend: V virtual tokens, K width of an embedding, J key and value heads, D width of a key, E width
of a value.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, slots=True)
class Virtual:
    """Virtual tokens before every prompt of an adapter, in float32, or of an image in a prompt."""

    embedding_VK: "torch.Tensor | None" = None
    keys: "Mapping[int, torch.Tensor]" = field(default_factory=dict)
    """Layer index -> keys, [V, J, D]; likewise values, [V, J, E]."""
    values: "Mapping[int, torch.Tensor]" = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class VirtualRun:
    """A run of virtual tokens of one request that a step inserts."""

    virtual: Virtual
    first: int
    """Index of the first one."""
    place_V: "torch.Tensor"
    """Row of the batch for each embedding, or slot of the KV cache for keys and values; int64."""

    @property
    def embeddings(self) -> "torch.Tensor":
        """Their embeddings, [·, K]."""
        assert self.virtual.embedding_VK is not None
        return self.virtual.embedding_VK[self.numbers]

    @property
    def numbers(self) -> slice:
        """The range of virtual tokens in this run."""
        return slice(self.first, self.first + len(self.place_V))
