"""What the engine reports about the base model when it is ready."""

from msgspec import Struct

from loramux_adapters.embedding import DEFAULT, Embedding
from loramux_adapters.experts import ExpertsShape
from loramux_adapters.head import HeadShape
from loramux_adapters.vocabulary import BaseVocabulary
from loramux_server.wire.engine_sizes import EngineSizes
from loramux_server.wire.model_kind import ModelKind
from loramux_server.wire.weight_format import AS_SAVED, StorageFormat
from loramux_server.wire.writing import Writing


class Layer(Struct, frozen=True):
    """A layer of the base that adapters can target."""

    in_features: int
    out_features: int


class ModelInfo(Struct, frozen=True, kw_only=True):
    """What the frontend needs to know about the base model."""

    name: str
    aliases: list[str] = []
    """Other names that clients may use; the engine does not set them."""
    architecture: str
    kind: ModelKind = ModelKind.DECODER
    fingerprint: str
    dtype: str
    device: str
    context_length: int
    source_length: int = 0
    """The part of it that is for the encoder's input, in an encoder-decoder."""
    writing: Writing | None = None
    """Generation settings of an encoder-decoder; None for other models."""
    vocab_size: int
    num_parameters: int
    eos_token_ids: list[int]
    tokenizer_json: str | None
    """The tokenizer in the format of the tokenizers library; None if the base has none."""
    chat_template: str | None = None
    generation: dict[str, int | float] = {}
    """Its sampling defaults: field of the sampling parameters -> value."""
    special_tokens: dict[str, str] = {}
    """Special tokens that chat templates may name, such as `bos_token` -> its text."""
    layers: dict[str, Layer]
    """Layers that adapters can target; embeddings map the vocabulary size to their width."""
    vision_layers: dict[str, Layer] = {}
    """Vision layers that adapters can target; empty without vision."""
    vision_parameters: dict[str, list[int]] = {}
    """Shapes of the vision parameters that adapters can replace."""
    parameters: dict[str, list[int]] = {}
    """Shapes of the parameters that adapters can replace."""
    experts: dict[str, ExpertsShape] = {}
    """Expert layers that adapters can target."""
    heads: dict[str, HeadShape] = {}
    """Heads by task, with what follows the layers without a head under FEATURE_EXTRACTION; empty if
    all heads are plain linear layers."""
    vocabulary: BaseVocabulary = BaseVocabulary()
    """Its embedding and output layers."""
    adapter_rows: int
    """Rank rows that fit into a process's adapter memory: the largest rank that can be served."""
    row_bytes: int = 1
    """Bytes of a rank row over all layers."""
    storage_format: StorageFormat = AS_SAVED
    """Storage format of adapters in that memory."""
    takes_edits: bool = True
    """Whether adapters may have more than low-rank updates."""
    embedding_width: int = 0
    embedding: Embedding = DEFAULT
    """How it embeds a text unless the request or the package says otherwise."""
    embedding_fault: str = ""
    """Why it cannot, although its folder says how; empty if it can."""
    cache_shapes: list[tuple[int, int, int]] = []
    """For each layer with a KV cache: KV heads, width of a key, width of a value."""
    takes_token_types: bool = False
    """Whether its input has token types, which mark the second text of a pair."""
    supports_images: bool = False
    no_vision_reason: str = ""
    """Why it takes no images although its architecture could; empty otherwise."""
    has_recurrent_layers: bool = False
    """Whether it has recurrent layers, which keep one state for all previous tokens."""
    max_running: int
    """Requests that run at once: as configured, or as many as recurrent states have room."""
    num_blocks: int
    num_states: int = 0
    """Recurrent states that fit into memory; 0 without recurrent layers."""
    sizes: EngineSizes
    """The engine's sizes, including those that its config leaves at auto."""

    @property
    def names(self) -> list[str]:
        """All names by which clients may call it; the one that is reported comes first."""
        return [self.name, *self.aliases]

    @property
    def is_encoder(self) -> bool:
        """Whether it reads texts and generates none."""
        return self.kind is ModelKind.ENCODER

    @property
    def output_length(self) -> int:
        """The most tokens of the decoder; without an encoder, that includes the prompt."""
        return self.context_length - self.source_length

    @property
    def no_vision_message(self) -> str:
        """An error message that it takes no images, and why; empty if it takes them."""
        if self.supports_images:
            return ""
        return describe_no_vision(self.architecture, self.no_vision_reason)


def describe_no_vision(architecture: str, no_vision_reason: str) -> str:
    """Return the error message that a base of `architecture` takes no images.

    `no_vision_reason` says why; it is empty for architectures without vision.
    """
    why = no_vision_reason and f": {no_vision_reason}"
    return f"the base model, {architecture}, does not support images{why}"
