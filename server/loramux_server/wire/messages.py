"""What the frontend and the engine process say to each other.

Typed structs in MessagePack, each preceded by its length. Nothing here can carry code.
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
    """Do what is asked, beside the requests of others."""

    request_id: int
    ask: Ask
    timeout: float | None = None
    """Seconds from now in which it has to be finished: clocks of processes may differ."""
    weight: Positive = 1
    """The tenant's part of a busy engine, beside the weights of others."""


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
    used_states: int = 0
    """States of recurrent layers that requests and steps hold."""
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
    drafted: int = 0
    """Tokens that were computed in case that they are what comes."""
    accepted: int = 0
    """Those of them that were."""


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
    """The last message of an engine that has no more memory and cannot start, or go on."""

    message: str = ""
    """What did not fit, if it could not start."""


ToEngine = Submit | Cancel | Pause | Resume | Drop | Pin | Unpin | Ping
FromEngine = Ready | StartFailed | Report | OutOfMemory

encode = msgspec.msgpack.Encoder().encode
decode_to_engine = msgspec.msgpack.Decoder(ToEngine).decode
decode_from_engine = msgspec.msgpack.Decoder(FromEngine).decode
