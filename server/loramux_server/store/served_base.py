"""What an adapter has to fit: the served base model, and limits of the server."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Self

from loramux_adapters.base import BaseFolder
from loramux_adapters.base_identity import UNKNOWN, BaseIdentity
from loramux_adapters.contents import VirtualTokens
from loramux_adapters.experts import ExpertsShape
from loramux_adapters.head import HeadShape
from loramux_adapters.known_layers import features_like
from loramux_adapters.token_shape import TokenShape
from loramux_adapters.vocabulary import BaseVocabulary
from loramux_server.lora.row_allocator import RowSize
from loramux_server.wire.model_info import Layer, ModelInfo
from loramux_server.wire.model_kind import ModelKind
from loramux_server.wire.weight_format import StorageFormat


@dataclass(frozen=True, kw_only=True, slots=True)
class ServedBase:
    """The properties of the base model and the server that an adapter has to fit."""

    layers: Mapping[str, tuple[int, int]]
    """Name of each layer that can be changed -> (in_features, out_features)."""
    max_rows: int
    """Rank rows that fit the adapter memory."""
    max_host_bytes: int
    """Bytes that fit the host's adapter memory."""
    storage_format: StorageFormat
    """The format of resident adapters."""
    vocab_size: int
    """Number of tokens of the model."""
    tokenizer_json: str | None
    """Its tokenizer; None if it has none."""
    row_bytes: int
    """Bytes of a rank row over all layers."""
    parameters: Mapping[str, tuple[int, ...]]
    """Name of each parameter that can be replaced -> its shape."""
    vision_layers: Mapping[str, tuple[int, int]]
    """Name of each linear layer of the vision modules -> (in_features, out_features)."""
    vision_parameters: Mapping[str, tuple[int, ...]]
    """Name of each parameter of the vision modules -> its shape."""
    no_vision_reason: str
    """The message that the base takes no images, and why; empty if it takes them."""
    experts: Mapping[str, ExpertsShape]
    """Name of each layer's experts that can be changed -> their shape."""
    heads: Mapping[str, HeadShape]
    """The shape of the head, by task; see `ModelInfo.heads`."""
    vocabulary: BaseVocabulary
    """The input embeddings and the output layer."""
    takes_edits: bool
    """Whether adapters may contain more than low-rank changes."""
    token: TokenShape
    """Shape of a token's embedding and cache entries."""
    context_length: int
    """Most tokens of virtual tokens, prompt and completion together."""
    source_length: int = 0
    """The part of it that is for the encoder's input; 0 unless the base is an encoder-decoder."""
    kind: ModelKind = ModelKind.DECODER
    """Decoder, encoder, or both."""
    identity: BaseIdentity = UNKNOWN
    """Which model it is."""
    is_strict: bool = False
    """Whether an adapter that seems to be made for another base is refused."""
    folder: BaseFolder | None = None
    """The folder that the base was loaded from; None if it is not available."""

    @classmethod
    def of(cls, model: ModelInfo, *, max_host_bytes: int) -> Self:
        """Return the limits of `model` with this much host memory for adapters."""
        return cls(
            layers=_features(model.layers),
            parameters={name: tuple(shape) for name, shape in model.parameters.items()},
            vision_layers=_features(model.vision_layers),
            vision_parameters={n: tuple(shape) for n, shape in model.vision_parameters.items()},
            no_vision_reason=model.no_vision_message,
            experts=model.experts,
            heads=model.heads,
            vocabulary=model.vocabulary,
            max_rows=model.adapter_rows,
            max_host_bytes=max_host_bytes,
            storage_format=model.storage_format,
            tokenizer_json=model.tokenizer_json,
            row_bytes=model.row_bytes,
            takes_edits=model.takes_edits,
            vocab_size=model.vocab_size,
            token=TokenShape(
                model.embedding_width,
                tuple(model.cache_shapes),
                model.has_recurrent_layers,
                num_sequences=2 if model.kind is ModelKind.SEQ2SEQ else 1,
            ),
            context_length=model.context_length,
            source_length=model.source_length,
            kind=model.kind,
        )

    @property
    def row_size(self) -> RowSize:
        """The size of a rank row, for converting other sizes to rows."""
        return RowSize(self.row_bytes, self.storage_format.row_item_bytes)

    def features_of(self, module: str) -> tuple[int, int] | None:
        """Return (in_features, out_features) of the layer `module`; see `features_like`."""
        if module in self.layers:  # the common case
            return self.layers[module]
        post_layers = {
            name.removesuffix(".weight"): (width[1], width[0])
            for shape in self.heads.values()
            for name, width in shape.parameters.items()
            if name.endswith(".weight") and len(width) == 2
        }
        return features_like(module, {**post_layers, **self.layers})

    def layer_names(self) -> Iterable[str]:
        """Return the names of the layers that can be changed."""
        return self.layers

    def most_virtual(self, virtual: VirtualTokens) -> int:
        """Return the most such virtual tokens that leave room for a prompt and a completion."""
        if not self.source_length:
            return self.context_length - 2
        # Keys and values precede the decoder's tokens, embeddings the encoder's.
        written = self.context_length - self.source_length
        return written - 2 if virtual.has_cache else self.source_length - 1


def _features(layers: Mapping[str, Layer]) -> dict[str, tuple[int, int]]:
    return {name: (layer.in_features, layer.out_features) for name, layer in layers.items()}
