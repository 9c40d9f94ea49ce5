"""The values that say what a server is and does; public in `loramux.types`."""

import datetime
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ServerInfo:
    """What a server is and serves."""

    version: str
    base_model: str
    architecture: str
    fingerprint: str
    """A digest over architecture, tokenizer, shapes, and a sample of the values of each weight."""
    dtype: str
    device: str
    context_length: int
    vocab_size: int
    has_tokenizer: bool
    num_parameters: int
    has_chat_template: bool
    """Whether messages can be continued without an adapter that has a template of its own."""
    max_running_requests: int
    max_upload_bytes: int
    max_images: int = 0
    """Most images of a request; 0 means that none are taken."""
    max_image_bytes: int = 0
    """Of the file of one."""
    max_image_pixels: int = 0
    max_request_bytes: int = 0
    """Most bytes of a message to the server."""
    lineage: str = ""
    """Whose adapters it has: replicas have that of their primary."""
    kind: str = "decoder"
    """What the base model makes of a text: a `decoder` goes on with it, an `encoder` reads it and
    continues none, a `seq2seq` reads it and writes another."""
    source_length: int = 0
    """How many tokens of `context_length` are for what is read, where another text is written, for
    which the others are; else 0."""


@dataclass(frozen=True, slots=True)
class TierLoad:
    """What a tier holds; counts are since the engine started."""

    adapters: int
    bytes: int
    capacity_bytes: int
    hits: int
    """Requests that found their adapter in it."""
    misses: int
    evictions: int
    reloads: int
    """Loads of adapters that it had let go within the last minute."""


@dataclass(frozen=True, slots=True)
class ServerLoad:
    """What a server holds now and what it did since it started; times are sums in seconds.

    The difference of two of them says what happened in between.
    """

    uptime_seconds: float
    running_requests: int
    waiting_requests: int
    kv_blocks: int
    kv_blocks_used: int
    device: TierLoad
    host: TierLoad
    requests: int
    """That ended."""
    prompt_tokens: int
    generated_tokens: int
    first_tokens: int
    first_token_seconds: float
    gaps: int
    """Times between two tokens of a completion."""
    gap_seconds: float
    steps: int
    step_seconds: float
    step_requests: int
    """Requests in each step, added up."""
    step_adapters: int
    """Distinct adapters in each step, added up."""


@dataclass(frozen=True, slots=True)
class QuarantineEntry:
    """A request or adapter that a server does not run any more."""

    key: str
    """The digest of an adapter, or `request:` and a digest of the request."""
    adapters: tuple[str, ...]
    """The versions that have this digest."""
    cause: str
    """What happened."""
    since: datetime.datetime
    """In UTC."""
