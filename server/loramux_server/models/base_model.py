"""A base model that is ready to serve adapters: see `decoder_model.py` and `encoder_model.py`."""

from dataclasses import dataclass, field

import torch
from torch import nn
from transformers import PreTrainedModel

from loramux_server.lora.packed import LayerPlace
from loramux_server.lora.shard import UNSHARDED, Shard
from loramux_server.models.attention import AttentionBridge, CacheShape
from loramux_server.models.decoder_stack import DecoderStack
from loramux_server.models.editor import Editor
from loramux_server.models.encoders.encoder_runner import EncoderRunner
from loramux_server.models.experts import ServedExperts
from loramux_server.models.heads import Heads
from loramux_server.models.input_embedding import InputEmbedding
from loramux_server.models.packed_linear import OutputLayer, PackedLinear
from loramux_server.models.recurrent.recurrent import Recurrent
from loramux_server.models.replaceable import Replaceable
from loramux_server.models.servable import (
    Check,
)
from loramux_server.models.step import Step
from loramux_server.models.text_format import TextFormat
from loramux_server.models.vision.encoder import VisionEncoder
from loramux_server.wire.model_kind import ModelKind
from loramux_server.wire.writing import Writing


@dataclass(frozen=True, slots=True)
class BaseModel:
    """A base model with packed linear layers and our attention."""

    module: PreTrainedModel
    step: Step
    attention: AttentionBridge
    recurrent: Recurrent
    """The layers that keep recurrent states; none in most models."""
    groups: list[PackedLinear]
    embedding: InputEmbedding
    output: OutputLayer | None
    """None if the model produces no logits."""
    editor: Editor
    """Applies what adapters do to modules other than packed linear layers."""
    stack: DecoderStack | None
    """All layers fused into one; None if they consist of other parts than it supports."""
    check: Check
    vision: VisionEncoder | None
    """Encodes images; None if images are not served."""
    no_vision_reason: str
    """Why images are not served although models of this type support them; else empty."""
    places: dict[str, LayerPlace]
    """Name of each layer that adapters can change -> its group and place in it."""
    experts: dict[str, ServedExperts]
    """The experts of each layer that adapters can change, by name."""
    replaceable: Replaceable
    """The parameters that adapters can replace."""
    name: str
    architecture: str
    fingerprint: str
    dtype: torch.dtype
    device: torch.device
    context_length: int
    vocab_size: int
    num_parameters: int
    eos_token_ids: list[int]
    text: TextFormat
    kind: ModelKind = ModelKind.DECODER
    generation: dict[str, int | float] = field(default_factory=dict)
    """The model's default sampling parameters: field -> value."""
    writing: Writing | None = None
    """Settings of the decoder of an encoder-decoder; None for other models."""
    encoder_runner: EncoderRunner | None = None
    """Takes a step in place of `module`, if that reads one text at a time."""
    takes_token_types: bool = False
    """Whether it takes token type ids for the second text of a pair."""
    source_length: int = 0
    """Part of the context length that is the encoder's source, in an encoder-decoder."""
    own_cache_shapes: list[CacheShape] = field(default_factory=list)
    """What a layer caches per token outside of KV blocks."""
    prefix_shapes: list[CacheShape] = field(default_factory=list)
    """Shapes of the keys and values that prefix tuning may bring per token, if not
    `cache_shapes`."""
    heads: Heads | None = None
    """The heads for tasks; None if a head is a linear layer."""
    shard: Shard = UNSHARDED
    """The part of its layers that this process holds."""

    @property
    def runs(self) -> nn.Module:
        """The module that takes a step."""
        return self.encoder_runner or self.module

    @property
    def embedding_width(self) -> int:
        """Width of an embedding."""
        return self.replaceable.width[0]

    @property
    def cache_shapes(self) -> list[CacheShape]:
        """What each layer caches per token."""
        return self.own_cache_shapes or list(self.attention.shapes.values())


def materialize_weights(module: PreTrainedModel) -> None:
    """Copy the remaining weights, so that nothing keeps the mapped file open."""
    for parameter in module.parameters():
        if type(parameter) is nn.Parameter:  # quantized weights belong to their library
            parameter.data = parameter.data.clone()


def eos_token_ids_of(module: PreTrainedModel, vocab_size: int) -> list[int]:
    """Return the end-of-sequence tokens of `module` that are in its vocabulary."""
    found: set[int] = set()
    for config in (module.generation_config, module.config.get_text_config()):
        ids = getattr(config, "eos_token_id", None)
        if ids is not None:
            found.update([ids] if isinstance(ids, int) else ids)
    return sorted(token for token in found if 0 <= token < vocab_size)
