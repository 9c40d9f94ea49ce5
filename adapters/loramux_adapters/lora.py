"""The low-rank update of one linear layer."""

from dataclasses import dataclass

from loramux_adapters.tensorfile import TensorInfo


@dataclass(frozen=True, slots=True)
class LoraModule:
    """The low-rank update of one linear layer: y += scale * B(Ax)."""

    module: str
    """Name of the layer in the base model, such as `model.layers.0.self_attn.q_proj`."""
    scale: float
    a: TensorInfo
    """A, of shape [rank, in_features]."""
    b: TensorInfo
    """B, of shape [out_features, rank]."""
    is_embedding: bool = False
    """Whether the layer is an embedding, where a token selects a column of A."""

    @property
    def name(self) -> str:
        """Name of the changed layer."""
        return self.module

    @property
    def num_experts(self) -> int:
        """Number of experts it changes, as for `ExpertLora`; for a layer, 1."""
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
        """Whether the layer is outside the numbered layers of the model."""
        return is_outer(self.module)


def is_outer(module: str) -> bool:
    """Return whether `module` is outside the model's layers, which have a number in their names."""
    return not any(part.isdecimal() for part in module.split("."))
