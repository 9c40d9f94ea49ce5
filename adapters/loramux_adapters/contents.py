"""What an adapter changes in the base model, independent of its method."""

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import chain

from loramux_adapters.experts import ExpertLora
from loramux_adapters.head import Head
from loramux_adapters.lora import LoraModule
from loramux_adapters.tensorfile import TensorInfo


class EditKind(enum.StrEnum):
    """What a tensor of an adapter does to one module."""

    MAGNITUDE = "magnitude"
    """Norm that each output's weight row is scaled to, low-rank update included: DoRA."""
    OUTPUT_FACTOR = "output factor"
    """Multiplies the layer's output, bias included: IA3."""
    INPUT_FACTOR = "input factor"
    """Multiplies the layer's input: IA3 in feed-forward layers."""
    BIAS = "bias"
    """Replaces the module's bias."""
    ADDED_BIAS = "added bias"
    """Is added to the output of B, before its scale."""
    PARAMETER = "parameter"
    """Replaces a parameter: the module was trained in full."""
    SHARED_WEIGHT = "shared weight"
    """Replaces the embedding weight, and any weight that the base ties to it."""
    TOKENS = "rows of tokens"
    """Replace the rows of some tokens in the embedding weight."""


@dataclass(frozen=True, slots=True)
class Edit:
    """A tensor that changes one module other than by a low-rank update."""

    module: str
    """Name of the module in the base model."""
    kind: EditKind
    tensor: TensorInfo
    parameter: str = ""
    """Name of the module's parameter that it replaces."""
    tokens: tuple[int, ...] = ()
    """The tokens whose rows it replaces."""

    @property
    def width(self) -> int:
        """Number of elements; for a vector, the layer's inputs or outputs."""
        size = 1
        for length in self.tensor.shape:
            size *= length
        return size


@dataclass(frozen=True, slots=True)
class Bottleneck:
    """A two-layer network after attention or the MLP of one layer."""

    layer: str
    """Name of the layer in the base model."""
    place: str
    """Which module it follows; see `bottleneck_sites.PLACES`."""
    parts: Mapping[str, TensorInfo]
    """`down`, `up` and `norm`, each with `.weight` and `.bias`, and `scaling`; only those that it
    has."""

    @property
    def module(self) -> str:
        """Its name: layer and place."""
        return f"{self.layer}.{self.place}"

    @property
    def width(self) -> int:
        """Hidden size of the base model."""
        return self.parts["down.weight"].shape[1]


@dataclass(frozen=True, slots=True)
class VirtualTokens:
    """Soft prompt or KV prefix that stands before every prompt in place of tokens.

    Embeddings; or, if `num_layers` is not 0, keys and values for every layer: keys of the first
    layer, its values, keys of the second, and so on, each for all heads.
    """

    tensor: TensorInfo
    """[count, width]; for an encoder-decoder, the embeddings for both, one after the other."""
    factors: tuple[TensorInfo, TensorInfo] | None = None
    """C and R, [1, count, rank] and [1, rank, width]: embeddings are scaled elementwise by CR."""
    num_layers: int = 0
    num_heads: int = 0
    num_sequences: int = 1
    """Sequences that it holds embeddings for: 2 for an encoder-decoder, else 1."""

    @property
    def count(self) -> int:
        """Virtual tokens per sequence; PEFT's `generate` puts none before the decoder's output."""
        return self.tensor.shape[0] // (1 if self.has_cache else self.num_sequences)

    @property
    def width(self) -> int:
        """Numbers per virtual token."""
        return self.tensor.shape[1]

    @property
    def has_cache(self) -> bool:
        """Whether it holds keys and values instead of embeddings."""
        return self.num_layers > 0

    @property
    def head_width(self) -> int:
        """Width of one head's key or value."""
        return self.width // (2 * self.num_layers * self.num_heads)

    @property
    def tensors(self) -> list[TensorInfo]:
        """All of its tensors."""
        return [self.tensor, *(self.factors or ())]


@dataclass(frozen=True, slots=True)
class Contents:
    """All changes of one adapter, each list sorted by module name."""

    modules: list[LoraModule] = field(default_factory=list)
    """Low-rank updates of layers."""
    experts: list[ExpertLora] = field(default_factory=list)
    """Low-rank updates of experts."""
    edits: list[Edit] = field(default_factory=list)
    routers: list[LoraModule] = field(default_factory=list)
    """Low-rank updates of the routers of experts; filled once the base is known."""
    bottlenecks: list[Bottleneck] = field(default_factory=list)
    virtual: VirtualTokens | None = None
    invocation: tuple[int, ...] = ()
    """Tokens from whose last occurrence in a prompt the adapter applies (aLoRA); empty: always."""
    head: Head | None = None
    """Head that replaces the output layer; it changes no module of the base."""
    vision: "Contents | None" = None
    """Changes of vision modules; filled once the base is known."""
    post_layers: "Contents | None" = None
    """Changes of modules after the base's layers, such as a pooler, which only heads read; filled
    once the base is known."""
    task: str = ""
    """PEFT's `task_type`; empty if the config does not state it."""

    @property
    def low_rank(self) -> list[LoraModule | ExpertLora]:
        """All low-rank updates of the text model."""
        return [*self.modules, *self.routers, *self.experts]

    @property
    def outer_modules(self) -> list[LoraModule]:
        """Low-rank updates of modules before or after the model's layers."""
        return [module for module in self.modules if module.is_outer]

    @property
    def changed_modules(self) -> list[str]:
        """Names of all changed modules except bottlenecks, sorted."""
        beside = (part.changed_modules for part in (self.vision, self.post_layers) if part)
        return sorted({
            *(change.name for change in self.low_rank), *(edit.module for edit in self.edits),
            *chain.from_iterable(beside),
        })  # fmt: skip

    @property
    def other_tensors(self) -> list[TensorInfo]:
        """All tensors that are not part of low-rank updates."""
        return [
            *(edit.tensor for edit in self.edits),
            *(part for bottleneck in self.bottlenecks for part in bottleneck.parts.values()),
            *(self.virtual.tensors if self.virtual else ()),
            *(self.head.tensors if self.head else ()),
        ]

    @property
    def has_more(self) -> bool:
        """Whether there is any change of the base other than low-rank updates of its layers."""
        return bool(self.experts or self.routers or self.edits or self.bottlenecks or self.virtual)
