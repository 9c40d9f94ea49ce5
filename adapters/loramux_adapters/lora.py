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
