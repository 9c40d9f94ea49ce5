"""What the engine tells of the base model when it is ready."""

from msgspec import Struct

from loramux_adapters.embedding import DEFAULT, Embedding
from loramux_adapters.experts import ExpertsShape
from loramux_adapters.head import HeadShape
from loramux_adapters.vocabulary import BaseVocabulary
from loramux_server.wire.engine_sizes import EngineSizes
from loramux_server.wire.model_kind import ModelKind
from loramux_server.wire.weight_format import AS_SAVED, Resting
from loramux_server.wire.writing import Writing


class Layer(Struct, frozen=True):
    """A layer of the base that adapters can change."""

    in_features: int
    out_features: int


class ModelInfo(Struct, frozen=True, kw_only=True):
    """What the frontend needs to know about the base model."""

    name: str
    aliases: list[str] = []
    """Other names by which clients may call it; the engine knows of none."""
    architecture: str
    kind: ModelKind = ModelKind.DECODER
    fingerprint: str
    dtype: str
    device: str
    context_length: int
    source_length: int = 0
    """Tokens of it that are for what an encoder reads, where a decoder writes the rest."""
    writing: Writing | None = None
    """What it says of the texts that it writes; None where it goes on with what it reads."""
    vocab_size: int
    num_parameters: int
    eos_token_ids: list[int]
    tokenizer_json: str | None
    """The tokenizer in the format of the tokenizers library; None where the base has none."""
    chat_template: str | None = None
    generation: dict[str, int | float] = {}
    """How it wants its tokens chosen: field of the sampling parameters -> its default."""
    special_tokens: dict[str, str] = {}
    """What a chat template may name, such as `bos_token` -> the text of the token."""
    layers: dict[str, Layer]
    """What can be adapted; embeddings map the number of tokens to the width of each."""
    sight_layers: dict[str, Layer] = {}
    """What can be adapted of what sees images; empty where none are seen."""
    sight_parameters: dict[str, list[int]] = {}
    """Shapes of what an adapter may bring its own of there."""
    parameters: dict[str, list[int]] = {}
    """Shapes of what an adapter may bring its own of."""
    experts: dict[str, ExpertsShape] = {}
    """Experts that can be adapted."""
    heads: dict[str, HeadShape] = {}
    """What is behind the layers, by task, and by FEATURE_EXTRACTION what is there without a head;
    empty where heads are linear layers and nothing else."""
    vocabulary: BaseVocabulary = BaseVocabulary()
    """Where tokens go in and come out."""
    adapter_rows: int
    """Rank rows that fit the adapter memory of a process: the largest rank that can be served."""
    row_bytes: int = 1
    """Bytes of one of them over all layers."""
    resting: Resting = AS_SAVED
    """In which format adapters rest there."""
    takes_edits: bool = True
    """Whether adapters may do more than low-rank changes."""
    embedding_width: int = 0
    embedding: Embedding = DEFAULT
    """How it makes one vector of a text where neither request nor package says."""
    embedding_fault: str = ""
    """Why it cannot, though its folder says how; empty where it can."""
    cache_shapes: list[tuple[int, int, int]] = []
    """Of each layer: heads that keep something of a token, width of a key, width of a value."""
    takes_token_types: bool = False
    """Whether it is told which tokens are of the second of two texts."""
    sees_images: bool = False
    blindness: str = ""
    """Why it takes no images, where its kind could; empty where it could not."""
    has_recurrent_layers: bool = False
    """Whether there are others, which keep a state of all tokens."""
    max_running: int
    """Requests that run at once: as many as are wanted, or of whose states there is room."""
    num_blocks: int
    num_states: int = 0
    """Requests of which there is room for what recurrent layers know; 0 without such."""
    sizes: EngineSizes
    """What it has of all that a config may leave open."""

    @property
    def names(self) -> list[str]:
        """All by which clients may call it, the one that is reported first."""
        return [self.name, *self.aliases]

    @property
    def is_encoder(self) -> bool:
        """Whether it reads texts and continues none."""
        return self.kind is ModelKind.ENCODER

    @property
    def output_length(self) -> int:
        """The most tokens of a text that is written, with the prompt where it goes on with that."""
        return self.context_length - self.source_length

    @property
    def is_blind(self) -> str:
        """That it sees no images, and why, in words; empty where it sees them."""
        return "" if self.sees_images else told_blind(self.architecture, self.blindness)


def told_blind(architecture: str, blindness: str) -> str:
    """Return in words that a base model of `architecture` sees no images, because of `blindness`.

    That is empty where models of its kind see none.
    """
    return f"the base model, {architecture}, sees no images" + (blindness and f": {blindness}")
