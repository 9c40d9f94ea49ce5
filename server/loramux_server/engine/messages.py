"""What the frontend and the engine process say to each other.

Typed structs in MessagePack, each preceded by its length. Nothing here can carry code.
"""

import enum
from typing import Annotated

import msgspec
from msgspec import Meta, Struct

from loramux_adapters.embedding import Pooling
from loramux_adapters.head import Task
from loramux_adapters.vocabulary import BaseVocabulary
from loramux_server.forms.form import Form
from loramux_server.lora.weight_format import AS_SAVED, Resting

MAX_LOGPROBS = 20
"""Tokens whose log-probabilities are told at a position."""
Positive = Annotated[int, Meta(ge=1)]


class Combination(enum.StrEnum):
    """How the parts of a mix become one adapter, as `add_weighted_adapter` of PEFT defines it."""

    CAT = "cat"
    """Changes add up, and so do ranks."""
    LINEAR = "linear"
    """Factors add up; the ranks are equal."""


class Part(Struct, frozen=True):
    """One adapter of a mix."""

    digest: str
    path: str
    weight: float
    seal: str = ""


class AdapterSource(Struct, frozen=True):
    """One adapter version, or a mix of several: what it is and where its bytes are."""

    digest: str
    """Identity: `sha256:` and the digest of the package, or of what a mix is made of."""
    path: str
    """Empty for a mix."""
    rank: int
    """The largest rank of any module."""
    num_bytes: int
    """Bytes of its weights in memory."""
    item_bytes: int = 4
    """Bytes of one of those in A and B: less if all were saved in 16 bits."""
    edit_bytes: int = 0
    """Bytes of what it has beside A and B, which rests in float32 but for matrices in the place of
    the base's, which rest in what they were saved in."""
    vocab_size: int = 0
    """Tokens that the base has with it; 0 if as many as ever."""
    tenant: str = ""
    """Whose share of the device it takes: who brought the content there."""
    invocation: tuple[int, ...] = ()
    """Tokens from whose last occurrence in a prompt on it is active; empty where it always is."""
    parts: tuple[Part, ...] = ()
    """What a mix is made of."""
    combination: Combination = Combination.CAT
    """How."""
    virtual_tokens: int = 0
    """Positions before every prompt that are the adapter's."""
    has_cache: bool = False
    """Whether it brings keys and values for them; else it is embeddings."""
    task: Task | None = None
    """What its head reads; None where it continues text."""
    seal: str = ""
    """What its bytes have beside the digest, and can be known by sooner; empty if that is not
    known."""

    def at_rest(self, resting: Resting) -> "AdapterSource":
        """Return what it is when its weights rest in memory as `resting` says."""
        item_bytes = resting.item_bytes(self.item_bytes)
        if item_bytes == self.item_bytes:
            return self
        low_rank = (self.num_bytes - self.edit_bytes) * item_bytes // self.item_bytes
        num_bytes = low_rank + self.edit_bytes
        return msgspec.structs.replace(self, num_bytes=num_bytes, item_bytes=item_bytes)


class Sampling(Struct, frozen=True, kw_only=True):
    """How one completion's tokens are chosen; every default is filled in and checked."""

    max_tokens: int
    seed: int
    min_tokens: int = 0
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: dict[int, float] = {}
    stop_token_ids: frozenset[int] = frozenset()
    ignore_eos: bool = False
    num_logprobs: int | None = None
    num_prompt_logprobs: int | None = None
    """Likeliest tokens that are told at each position of the prompt; None where nothing is."""
    form: Form | None = None
    """What the text has to be; None for any."""

    @property
    def is_greedy(self) -> bool:
        """Whether the likeliest token is always taken."""
        return self.temperature < 1e-5

    @property
    def is_plain(self) -> bool:
        """Whether a step can do all that is asked for."""
        return self.form is None and (self.num_logprobs or 0) <= MAX_LOGPROBS

    @property
    def changes_logits(self) -> bool:
        """Whether logits differ from the model's own before a token is chosen."""
        return bool(
            self.logit_bias
            or self.repetition_penalty != 1.0
            or self.presence_penalty
            or self.frequency_penalty
            or self.min_tokens
        )


class Submit(Struct, frozen=True, tag=True):
    """Generate one completion, or read one text: for the head of the adapter, or to embed it.

    A completion of no tokens is one whose prompt's log-probabilities are wanted.
    """

    request_id: int
    prompt: list[int]
    adapter: AdapterSource | None
    sampling: Sampling
    tenant: str = ""
    """Whose request it is: only their own requests share KV blocks with it."""
    timeout: float | None = None
    """Seconds from now in which it has to be finished: clocks of processes may differ."""
    weight: Positive = 1
    """The tenant's part of a busy engine, beside the weights of others."""
    pooling: Pooling | None = None
    """How the text is embedded, by its last token or all of them; None where it is not."""


class Cancel(Struct, frozen=True, tag=True):
    """The caller went away or has enough; free everything that the request holds."""

    request_id: int


class Pause(Struct, frozen=True, tag=True):
    """The reader is behind: free everything that the request holds, and make no more tokens."""

    request_id: int


class Resume(Struct, frozen=True, tag=True):
    """The reader has caught up; go on where the request was."""

    request_id: int


class Drop(Struct, frozen=True, tag=True):
    """The adapter is no longer registered; free its memory once no request uses it.

    What it had is told as stored then, even if it had nothing.
    """

    digest: str


class Pin(Struct, frozen=True, tag=True):
    """Bring an adapter to the device and keep it there while there is another way."""

    adapter: AdapterSource
    """As it rests in memory."""


class Unpin(Struct, frozen=True, tag=True):
    """The adapter need not stay on the device."""

    digest: str


class Ping(Struct, frozen=True, tag=True):
    """Give a sign of life: a report follows, as after every message."""


class Layer(Struct, frozen=True):
    """A layer of the base that adapters can change."""

    in_features: int
    out_features: int


class ModelInfo(Struct, frozen=True, kw_only=True):
    """What the frontend needs to know about the base model."""

    name: str
    architecture: str
    fingerprint: str
    dtype: str
    device: str
    context_length: int
    vocab_size: int
    num_parameters: int
    eos_token_ids: list[int]
    tokenizer_json: str | None
    """The tokenizer in the format of the tokenizers library; None where the base has none."""
    chat_template: str | None = None
    special_tokens: dict[str, str] = {}
    """What a chat template may name, such as `bos_token` -> the text of the token."""
    layers: dict[str, Layer]
    """What can be adapted; embeddings map the number of tokens to the width of each."""
    parameters: dict[str, list[int]] = {}
    """Shapes of what an adapter may bring its own of."""
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
    cache_shapes: list[tuple[int, int, int]] = []
    """Of each layer: heads that keep something of a token, width of a key, width of a value."""
    num_blocks: int
    kv_memory: int
    """Bytes of all KV blocks in each process that holds a part of the model: an engine that is
    given so many has as many blocks."""


class Ready(Struct, frozen=True, tag=True):
    """The engine answers requests from now on."""

    model: ModelInfo


class StartFailed(Struct, frozen=True, tag=True):
    """The engine cannot start, and starting again would not help."""

    message: str


class Finish(enum.StrEnum):
    """Why a request ended in the engine."""

    STOP = "stop"
    LENGTH = "length"


class Logprobs(Struct, frozen=True, array_like=True):
    """Log-probabilities at one position, from the model's own distribution."""

    chosen: float
    top: list[tuple[int, float]]
    """(token, logprob), likeliest first."""


class Token(Struct, frozen=True, array_like=True):
    """The next token of a request."""

    request_id: int
    token: int
    finish: Finish | None = None
    logprobs: Logprobs | None = None


class PromptLogprobs(Struct, frozen=True, array_like=True):
    """The log-probabilities of a prompt, which come before the request's first token."""

    request_id: int
    numbers: bytes
    """float64. What `kernels.prompt_logprobs` tells of each token of the prompt but the first."""
    finish: Finish | None = None
    """Why the request ended with them, where no token was asked for."""


class Scores(Struct, frozen=True, array_like=True):
    """What became of a text that was read, which ends the request."""

    request_id: int
    numbers: bytes
    """float32. The logits of each output of the adapter's head: of the text as a whole, or of each
    of its tokens in order. Or, of a text that is embedded, one hidden state."""


class Failure(Struct, frozen=True, array_like=True):
    """A request ended without a result."""

    request_id: int
    reason: str
    """A name of `loramux.v1.ErrorReason` without its prefix."""
    message: str
    field: str = ""
    """The field of the request that is at fault, if one is."""


class Started(Struct, frozen=True, array_like=True):
    """A request left the queue for the first time."""

    request_id: int
    queue_seconds: float
    cached_tokens: int = 0
    """Tokens of its prompt whose keys and values were there already."""


class CacheStats(Struct, frozen=True):
    """Counts of one adapter tier since the engine started, and what it holds now."""

    resident: int = 0
    used_bytes: int = 0
    """On the device in each process that holds a part of the model; on the host in all together."""
    hits: int = 0
    misses: int = 0
    evictions: int = 0
    reloads: int = 0
    """Loads of what the tier had let go within the last minute."""


class Stats(Struct, frozen=True, kw_only=True):
    """The state of the engine after a step."""

    running: int
    waiting: int
    paused: int = 0
    """Requests whose readers are behind."""
    used_blocks: int
    preemptions: int
    """Since the engine started."""
    prompt_tokens: int
    """Tokens that requests brought when they started, likewise."""
    shared_tokens: int
    """Those of them whose KV blocks were there already, likewise."""
    device: CacheStats
    host: CacheStats


class Load(Struct, frozen=True):
    """One finished adapter load."""

    tier: str
    seconds: float
    digest: str = ""


class BatchSize(Struct, frozen=True):
    """The size of the batch of one step."""

    requests: int
    tokens: int
    adapters: int
    """Distinct adapters, the base not counted."""
    seconds: float


class Report(Struct, frozen=True, tag=True, kw_only=True):
    """Everything that one step of the engine has to tell."""

    stats: Stats
    tokens: list[Token] = []
    prompts: list[PromptLogprobs] = []
    scores: list[Scores] = []
    failures: list[Failure] = []
    started: list[Started] = []
    loads: list[Load] = []
    tiers: dict[str, str] = {}
    """Digest -> the fastest tier that holds it now, for adapters that moved."""
    loading: list[str] = []
    """Digests of the adapters whose loads began."""
    failed_loads: dict[str, str] = {}
    """Digest -> why its load failed."""
    seals: dict[str, str] = {}
    """Digest -> seal, where none had come with the adapter or a wrong one."""
    batch: BatchSize | None = None
    compiled: list[float] = []
    """Seconds that each form took which was compiled."""


class OutOfMemory(Struct, frozen=True, tag=True):
    """The last message of an engine that has no more memory and cannot go on."""


ToEngine = Submit | Cancel | Pause | Resume | Drop | Pin | Unpin | Ping
FromEngine = Ready | StartFailed | Report | OutOfMemory

encode = msgspec.msgpack.Encoder().encode
decode_to_engine = msgspec.msgpack.Decoder(ToEngine).decode
decode_from_engine = msgspec.msgpack.Decoder(FromEngine).decode
