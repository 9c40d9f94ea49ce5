"""A base model that is ready to serve adapters: see `decoder_model.py` and `whole_model.py`."""

from dataclasses import dataclass, field

import torch
from torch import nn
from transformers import PreTrainedModel

from loramux_server.lora.packed import LayerPlace
from loramux_server.lora.shard import WHOLE, Shard
from loramux_server.models.attention import AttentionBridge, CacheShape
from loramux_server.models.decoder_stack import DecoderStack
from loramux_server.models.editor import Editor
from loramux_server.models.encoders.whole_texts import WholeTexts
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
from loramux_server.models.vision.sight import Sight
from loramux_server.wire.model_kind import ModelKind
from loramux_server.wire.writing import Writing


@dataclass(frozen=True, slots=True)
class BaseModel:
    """A base model whose linear layers are packed and whose attention is ours."""

    module: PreTrainedModel
    step: Step
    attention: AttentionBridge
    recurrent: Recurrent
    """The layers that know of tokens by states; none in most models."""
    groups: list[PackedLinear]
    embedding: InputEmbedding
    output: OutputLayer | None
    """None where no logits are made."""
    editor: Editor
    """Does what adapters do to other modules than those."""
    stack: DecoderStack | None
    """All layers in one; None where they are made of parts that it does not know."""
    check: Check
    sight: Sight | None
    """What sees images; None where they are not served."""
    blindness: str
    """Why they are not, where the model's kind sees; else empty."""
    places: dict[str, LayerPlace]
    """Name of each layer that adapters can change -> where it is among the groups."""
    experts: dict[str, ServedExperts]
    """Each layer's experts that adapters can change, by name."""
    replaceable: Replaceable
    """What adapters can do beside that."""
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
    """How it wants its tokens chosen: field of the sampling parameters -> its default."""
    writing: Writing | None = None
    """What it says of the texts that it writes; None where it goes on with what it reads."""
    whole_texts: WholeTexts | None = None
    """What takes a step in place of `module`, where that reads one text at a time."""
    takes_token_types: bool = False
    """Whether it is told which tokens are of the second of two texts."""
    source_length: int = 0
    """Tokens of the context that are for what an encoder reads, where a decoder writes the rest."""
    own_cache_shapes: list[CacheShape] = field(default_factory=list)
    """What is kept of a token beside blocks."""
    prefix_shapes: list[CacheShape] = field(default_factory=list)
    """What adapters may bring of a token before texts, where that is something else."""
    heads: Heads | None = None
    """What adapters for tasks have behind its layers; None where that is a linear layer."""
    shard: Shard = WHOLE
    """Which part of its layers this process holds."""

    @property
    def runs(self) -> nn.Module:
        """What takes a step."""
        return self.whole_texts or self.module

    @property
    def embedding_width(self) -> int:
        """Numbers of an embedding."""
        return self.replaceable.width[0]

    @property
    def cache_shapes(self) -> list[CacheShape]:
        """What each layer keeps of a token."""
        return self.own_cache_shapes or list(self.attention.shapes.values())


def own(module: PreTrainedModel) -> None:
    """Copy what is left of the weights, so that nothing holds the mapped file any longer."""
    for parameter in module.parameters():
        if type(parameter) is nn.Parameter:  # others lie where their library has put them
            parameter.data = parameter.data.clone()


def eos_token_ids_of(module: PreTrainedModel, vocab_size: int) -> list[int]:
    """Return the tokens with which `module` ends a text, of those that it has."""
    found: set[int] = set()
    for config in (module.generation_config, module.config.get_text_config()):
        ids = getattr(config, "eos_token_id", None)
        if ids is not None:
            found.update([ids] if isinstance(ids, int) else ids)
    return sorted(token for token in found if 0 <= token < vocab_size)
