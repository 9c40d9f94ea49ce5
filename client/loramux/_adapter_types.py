"""Types that describe adapters and their history; public in `loramux.types`."""

import datetime
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class AdapterStatus:
    """Runtime status of a version, with counters since the server started.

    They cover all versions with the same content, except for `calls`.
    """

    is_loading: bool
    """Whether the weights are being loaded to the host or the device."""
    load_failure: str
    """Why the last load failed; empty if it did not."""
    memory_bytes: int
    """Size of the weights in a memory tier."""
    calls: int
    """Calls that use the version now."""
    requests: int
    hits: int
    """Requests that found it on the device."""
    loads: int
    """Loads to the device."""
    last_used_at: datetime.datetime | None
    """In UTC."""


@dataclass(frozen=True, slots=True)
class Adapter:
    """One version of a registered adapter."""

    name: str
    tenant: str
    version: int
    """Version number, from 1; never reused."""
    digest: str
    size_bytes: int
    rank: int
    """The largest rank of any module; 0 if there is no low-rank update."""
    method: str
    """Method it was trained with, by PEFT's name in lower case, such as `lora` or `ia3`."""
    invocation_token_ids: tuple[int, ...]
    """Invocation tokens of an activated LoRA (aLoRA), which applies from their last occurrence in a
    prompt on; empty for adapters that apply from the start."""
    virtual_tokens: int
    """Context positions that prompt or prefix tuning puts before every prompt; usage does not count
    them."""
    task: str
    """PEFT task type: `SEQ_CLS` to classify texts, `TOKEN_CLS` tokens, `QUESTION_ANS` to find
    answers, `FEATURE_EXTRACTION` to embed texts, also for adapters without a head on an encoder;
    empty for text generation."""
    target_modules: tuple[str, ...]
    base_model: str
    """The base model named in the adapter's config."""
    source: str
    """`upload`, `directory` or `import`."""
    origin: str
    """URI that it was imported from; empty if it was not imported."""
    created_at: datetime.datetime
    """In UTC."""
    tier: str = field(compare=False)
    """The fastest tier that holds the weights now: `stored`, `host` or `device`."""
    aliases: tuple[str, ...]
    """Aliases that point to this version, alone or among others."""
    is_pinned: bool
    """Whether it is pinned to the device."""
    expires_at: datetime.datetime | None
    """When it is deleted automatically, in UTC; None if it does not expire."""
    status: AdapterStatus = field(compare=False)
    """Runtime status; not part of the comparison of two versions."""
    reference: str = field(compare=False)
    """The shortest reference with which this client addresses exactly this version."""
    other_base: str = ""
    """Why it seems to be made for another base model than the served one; empty if nothing says so.
    """


@dataclass(frozen=True, slots=True)
class AdapterChange:
    """A change to a version."""

    kind: str
    """`existing`, `registered`, `updated`, `moved` or `deleted`."""
    adapter: Adapter
    """The version after the change, or its last state if it was deleted."""


@dataclass(frozen=True, slots=True)
class AliasMove:
    """One change of an alias."""

    before: dict[int, int]
    """Weight by version; empty if the alias was new."""
    after: dict[int, int]
    """Weight by version; empty if the alias was deleted."""
    moved_at: datetime.datetime
    """In UTC."""
    moved_by: str
