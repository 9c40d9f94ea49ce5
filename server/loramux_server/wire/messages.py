"""The messages between the frontend and the engine process.

Typed structs in MessagePack, each preceded by its length. None can carry code.
"""

import enum
from typing import Annotated

import msgspec
from msgspec import Meta, Struct

from loramux_server.wire.adapter_source import AdapterSource
from loramux_server.wire.ask import Ask
from loramux_server.wire.model_info import ModelInfo

Positive = Annotated[int, Meta(ge=1)]


class Submit(Struct, frozen=True, tag=True):
    """Queue a request."""

    request_id: int
    ask: Ask
    timeout: float | None = None
    """Seconds from now in which it must finish; relative, since processes' clocks may differ."""
    weight: Positive = 1
    """Fair-share weight of its tenant on a busy engine, relative to those of others."""
    priority: int = 0
    """Order among the requests of its tenant: lower goes first."""


class Cancel(Struct, frozen=True, tag=True):
    """The caller is gone or needs no more; free everything that the request holds."""

    request_id: int


class Pause(Struct, frozen=True, tag=True):
    """The reader is behind; free everything that the request holds and generate no more tokens."""

    request_id: int


class Resume(Struct, frozen=True, tag=True):
    """The reader has caught up; continue where the request was paused."""

    request_id: int


class Drop(Struct, frozen=True, tag=True):
    """The adapter is no longer registered; free its memory once no request uses it.

    Its tier is then reported as stored, even if it was not in memory.
    """

    digest: str


class Pin(Struct, frozen=True, tag=True):
    """Load an adapter to the device and keep it there unless requests cannot run otherwise."""

    adapter: AdapterSource
    """With the sizes that its weights take in memory."""


class Unpin(Struct, frozen=True, tag=True):
    """The adapter may be evicted like any other."""

    digest: str


class Ping(Struct, frozen=True, tag=True):
    """A heartbeat request: a report follows, as after every message."""


class Ready(Struct, frozen=True, tag=True):
    """The engine is ready for requests."""

    model: ModelInfo


class StartFailed(Struct, frozen=True, tag=True):
    """The engine cannot start, and a restart would not help."""

    message: str


class Finish(enum.StrEnum):
    """Why a request ended in the engine."""

    STOP = "stop"
    LENGTH = "length"


class Logprobs(Struct, frozen=True, array_like=True):
    """Log-probabilities at one position, from the model's own distribution."""

    chosen: float
    top: list[tuple[int, float]]
    """(token, logprob), most likely first."""


class Token(Struct, frozen=True, array_like=True):
    """The next token of a request."""

    request_id: int
    token: int
    finish: Finish | None = None
    logprobs: Logprobs | None = None


class PromptLogprobs(Struct, frozen=True, array_like=True):
    """The log-probabilities of a prompt; they come before the request's first token."""

    request_id: int
    numbers: bytes
    """float64: the output of `kernels.prompt_logprobs` for each prompt token but the first."""
    finish: Finish | None = None
    """Why the request ended with them, if no token was requested."""


class Scores(Struct, frozen=True, array_like=True):
    """The result for a text that was read; it ends the request."""

    request_id: int
    numbers: bytes
    """float32: logits of the adapter's head, for the text as a whole or for each of its tokens in
    order; or, for an embedding, the pooled hidden state."""


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
    """Tokens of its prompt that the prefix cache provided."""


class CacheStats(Struct, frozen=True):
    """Counters of one adapter tier since the engine started, and what it holds now."""

    resident: int = 0
    used_bytes: int = 0
    """On the device per process under tensor parallelism; on the host in total."""
    hits: int = 0
    misses: int = 0
    evictions: int = 0
    reloads: int = 0
    """Loads of what the tier had evicted within the last minute."""


class Stats(Struct, frozen=True, kw_only=True):
    """The state of the engine after a step."""

    running: int
    waiting: int
    paused: int = 0
    """Requests whose readers are behind."""
    used_blocks: int
    used_states: int = 0
    """Recurrent states that requests and steps hold."""
    preemptions: int
    """Since the engine started."""
    prompt_tokens: int
    """Prompt tokens of requests that started, likewise."""
    shared_tokens: int
    """Those of them that the prefix cache provided, likewise."""
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
    """Distinct adapters, not counting the base."""
    seconds: float
    drafted: int = 0
    """Draft tokens that were verified."""
    accepted: int = 0
    """Draft tokens that were accepted."""


class Report(Struct, frozen=True, tag=True, kw_only=True):
    """Everything that one step of the engine reports."""

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
    """Digests of the adapters whose loads started."""
    failed_loads: dict[str, str] = {}
    """Digest -> why its load failed."""
    seals: dict[str, str] = {}
    """Digest -> seal, for adapters that came with none or with a wrong one."""
    batch: BatchSize | None = None
    compiled: list[float] = []
    """Seconds that compiling each structured-output constraint took."""


class OutOfMemory(Struct, frozen=True, tag=True):
    """The last message of an engine that ran out of memory, at its start or later."""

    message: str = ""
    """What did not fit, if it could not start."""


ToEngine = Submit | Cancel | Pause | Resume | Drop | Pin | Unpin | Ping
FromEngine = Ready | StartFailed | Report | OutOfMemory

encode = msgspec.msgpack.Encoder().encode
decode_to_engine = msgspec.msgpack.Decoder(ToEngine).decode
decode_from_engine = msgspec.msgpack.Decoder(FromEngine).decode
