"""The low-rank change of one linear layer."""

from dataclasses import dataclass

from loramux_adapters.tensorfile import TensorInfo


@dataclass(frozen=True, slots=True)
class LoraModule:
    """The low-rank change of one linear layer: y += scale * B(Ax)."""

    module: str
    """Name of the layer in the base model, such as `model.layers.0.self_attn.q_proj`."""
    scale: float
    a: TensorInfo
    """A, of shape [rank, in_features]."""
    b: TensorInfo
    """B, of shape [out_features, rank]."""
    is_embedding: bool = False
    """Whether its input is a token, which takes a column of A."""

    @property
    def name(self) -> str:
        """Name of what it changes."""
        return self.module

    @property
    def num_experts(self) -> int:
        """Of how many experts it is the change: it is one of a layer."""
        return 1

    @property
    def rank(self) -> int:
        """Number of rows of A and columns of B."""
        return self.a.shape[0]

    @property
    def in_features(self) -> int:
        """Width of the layer's input."""
        return self.a.shape[1]

    @property
    def out_features(self) -> int:
        """Width of the layer's output."""
        return self.b.shape[0]

    @property
    def is_outer(self) -> bool:
        """Whether it stands before or behind the model's layers."""
        return is_outer(self.module)


def is_outer(module: str) -> bool:
    """Return whether `module` stands before or behind the model's layers, which have numbers."""
    return not any(part.isdecimal() for part in module.split("."))
