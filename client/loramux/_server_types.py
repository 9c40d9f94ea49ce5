"""Types that describe a server and its load; public in `loramux.types`."""

import datetime
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ServerInfo:
    """A server and its base model."""

    version: str
    base_model: str
    """Its served name: `loramux serve --served-model-name`, or the last part of its path."""
    architecture: str
    fingerprint: str
    """Digest over the architecture, the tokenizer, and the shape and a sample of the values of each
    weight."""
    dtype: str
    device: str
    context_length: int
    vocab_size: int
    has_tokenizer: bool
    num_parameters: int
    has_chat_template: bool
    """Whether chats work without an adapter that has its own template."""
    max_running_requests: int
    max_upload_bytes: int
    max_images: int = 0
    """Maximum number of images in a request; 0 means that none are accepted."""
    max_image_bytes: int = 0
    """Maximum size of an image file."""
    max_image_pixels: int = 0
    max_request_bytes: int = 0
    """Maximum size of a message to the server."""
    lineage: str = ""
    """Identifies the set of adapters; replicas have that of their primary."""
    kind: str = "decoder"
    """Kind of base model: a `decoder` continues a text, an `encoder` only reads it, a `seq2seq`
    (encoder-decoder) reads it and generates another."""
    source_length: int = 0
    """For an encoder-decoder, how many tokens of `context_length` are for its input; the others are
    for its output. Otherwise 0."""
    base_aliases: tuple[str, ...] = ()
    """Other names of the base model, accepted where a field names it or an adapter."""


@dataclass(frozen=True, slots=True)
class TierLoad:
    """Content of a tier, with counters since the engine started."""

    adapters: int
    bytes: int
    capacity_bytes: int
    hits: int
    """Requests that found their adapter in it."""
    misses: int
    evictions: int
    reloads: int
    """Loads of adapters that it had evicted within the last minute."""


@dataclass(frozen=True, slots=True)
class ServerLoad:
    """Load of a server, with counters since it started; times are sums in seconds.

    Rates come from the difference of two samples.
    """

    uptime_seconds: float
    running_requests: int
    waiting_requests: int
    kv_blocks: int
    kv_blocks_used: int
    device: TierLoad
    host: TierLoad
    requests: int
    """Finished requests."""
    prompt_tokens: int
    generated_tokens: int
    first_tokens: int
    first_token_seconds: float
    gaps: int
    """Intervals between two consecutive tokens of a completion."""
    gap_seconds: float
    steps: int
    step_seconds: float
    step_requests: int
    """Sum over steps of the requests in each."""
    step_adapters: int
    """Sum over steps of the distinct adapters in each."""


@dataclass(frozen=True, slots=True)
class QuarantineEntry:
    """A request or adapter in quarantine."""

    key: str
    """The digest of an adapter, or `request:` and a digest of the request."""
    adapters: tuple[str, ...]
    """The versions with this digest."""
    cause: str
    """What happened."""
    since: datetime.datetime
    """In UTC."""
