"""What an adapter does to the base model, whatever method trained it."""

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
    """The length that each output's row of weights is given, the low-rank change included: DoRA."""
    OUTPUT_FACTOR = "output factor"
    """Multiplies the layer's output, bias included: IA3."""
    INPUT_FACTOR = "input factor"
    """Multiplies the layer's input: IA3 in feed-forward layers."""
    BIAS = "bias"
    """Takes the place of the module's bias."""
    ADDED_BIAS = "added bias"
    """Is added to the output of B, before its scale."""
    PARAMETER = "parameter"
    """Takes the place of a parameter: the module was trained whole."""
    SHARED_WEIGHT = "shared weight"
    """Takes the place of the weight of embeddings, also where the base has tied another to it."""
    TOKENS = "rows of tokens"
    """Take the place of some tokens' rows in the weight of embeddings."""


@dataclass(frozen=True, slots=True)
class Edit:
    """A tensor that changes one module beside, or without, a low-rank change."""

    module: str
    """Name of the module in the base model."""
    kind: EditKind
    tensor: TensorInfo
    parameter: str = ""
    """Name of the parameter of the module whose place it takes."""
    tokens: tuple[int, ...] = ()
    """The tokens whose rows it has."""

    @property
    def width(self) -> int:
        """How many numbers it has: for a vector, inputs or outputs of the layer."""
        size = 1
        for length in self.tensor.shape:
            size *= length
        return size


@dataclass(frozen=True, slots=True)
class Bottleneck:
    """A network of two layers behind attention or the MLP of one layer."""

    layer: str
    """Name of the layer in the base model."""
    place: str
    """What it stands behind; see `bottleneck_sites.PLACES`."""
    parts: Mapping[str, TensorInfo]
    """`down`, `up` and `norm`, each with `.weight` and `.bias`, and `scaling`; without what it does
    not have."""

    @property
    def module(self) -> str:
        """Its name."""
        return f"{self.layer}.{self.place}"

    @property
    def width(self) -> int:
        """Width of the base model."""
        return self.parts["down.weight"].shape[1]


@dataclass(frozen=True, slots=True)
class VirtualTokens:
    """What stands before every prompt, in place of tokens.

    Embeddings; or, where `num_layers` is not 0, what every layer keeps of each token: keys of the
    first layer, its values, keys of the second, and so on, each for all heads.
    """

    tensor: TensorInfo
    """[count, width]; of embeddings for an encoder and a decoder, those for both."""
    factors: tuple[TensorInfo, TensorInfo] | None = None
    """C and R, [1, count, rank] and [1, rank, width]: the embeddings are multiplied by CR."""
    num_layers: int = 0
    num_heads: int = 0
    num_texts: int = 1
    """Texts that they are for: of what an encoder reads and a decoder writes, 2."""

    @property
    def count(self) -> int:
        """How many stand before a text; `generate` of PEFT puts none before what is written."""
        return self.tensor.shape[0] // (1 if self.has_cache else self.num_texts)

    @property
    def width(self) -> int:
        """Numbers given of each."""
        return self.tensor.shape[1]

    @property
    def has_cache(self) -> bool:
        """Whether it is keys and values that are given."""
        return self.num_layers > 0

    @property
    def head_width(self) -> int:
        """Width of a key and of a value."""
        return self.width // (2 * self.num_layers * self.num_heads)

    @property
    def tensors(self) -> list[TensorInfo]:
        """All of its tensors."""
        return [self.tensor, *(self.factors or ())]


@dataclass(frozen=True, slots=True)
class Contents:
    """All changes of one adapter, each list in the order of the modules' names."""

    modules: list[LoraModule] = field(default_factory=list)
    """Low-rank changes of layers."""
    experts: list[ExpertLora] = field(default_factory=list)
    """Low-rank changes of experts."""
    edits: list[Edit] = field(default_factory=list)
    routers: list[LoraModule] = field(default_factory=list)
    """Low-rank changes of what chooses among experts, once it is known what that is in a base."""
    bottlenecks: list[Bottleneck] = field(default_factory=list)
    virtual: VirtualTokens | None = None
    invocation: tuple[int, ...] = ()
    """Tokens from whose last occurrence in a prompt on it does that; empty where it always does."""
    head: Head | None = None
    """What it has in place of the layer of logits; it changes no module of the base."""
    sight: "Contents | None" = None
    """What it does to what sees images, once it is known what that is in a base."""
    behind: "Contents | None" = None
    """What it does to what stands behind the layers of a base, such as a pooler, once it is known
    what that is; only heads read it."""
    task: str = ""
    """What it was trained for, as PEFT's `task_type` calls that; empty if that is not said."""

    @property
    def low_rank(self) -> list[LoraModule | ExpertLora]:
        """All low-rank changes of what reads text."""
        return [*self.modules, *self.routers, *self.experts]

    @property
    def outer_modules(self) -> list[LoraModule]:
        """Low-rank changes of what stands before or behind the model's layers."""
        return [module for module in self.modules if module.is_outer]

    @property
    def changed_modules(self) -> list[str]:
        """The names of all modules that it changes, bottlenecks aside, sorted."""
        beside = (part.changed_modules for part in (self.sight, self.behind) if part)
        return sorted({
            *(change.name for change in self.low_rank), *(edit.module for edit in self.edits),
            *chain.from_iterable(beside),
        })  # fmt: skip

    @property
    def other_tensors(self) -> list[TensorInfo]:
        """All tensors beside those of low-rank changes."""
        return [
            *(edit.tensor for edit in self.edits),
            *(part for bottleneck in self.bottlenecks for part in bottleneck.parts.values()),
            *(self.virtual.tensors if self.virtual else ()),
            *(self.head.tensors if self.head else ()),
        ]

    @property
    def has_more(self) -> bool:
        """Whether anything is done to the base beside low-rank changes of its layers."""
        return bool(self.experts or self.routers or self.edits or self.bottlenecks or self.virtual)
