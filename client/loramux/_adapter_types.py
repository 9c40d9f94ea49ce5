"""The values that say what an adapter is and was; public in `loramux.types`."""

import datetime
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class AdapterStatus:
    """What goes on with a version; counts are since the server started.

    They are of all versions with the same content together, except for `calls`.
    """

    is_loading: bool
    """Whether the weights are on their way to the host or the device."""
    load_failure: str
    """Why the last load failed; empty if it did not."""
    memory_bytes: int
    """What the weights take in a memory tier."""
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
    """Its number, from 1; none is given twice."""
    digest: str
    size_bytes: int
    rank: int
    """The largest rank of any module; 0 where there is no low-rank change."""
    method: str
    """What trained it, as PEFT calls that, in lower case: `lora` or `ia3`, say."""
    invocation_token_ids: tuple[int, ...]
    """Tokens from whose last place in a prompt on it does something; empty where it always does."""
    virtual_tokens: int
    """Positions of the context that it takes before every prompt; usage does not count them."""
    task: str
    """What it was trained for: `SEQ_CLS` to classify texts, `TOKEN_CLS` tokens, `QUESTION_ANS` to
    find answers, `FEATURE_EXTRACTION` to embed texts, as all do without a head where
    the base model is an encoder; empty if it continues text."""
    target_modules: tuple[str, ...]
    base_model: str
    """The base that the adapter's config names."""
    source: str
    """`upload`, `directory` or `import`."""
    origin: str
    """URI that it was imported from; empty where it was not."""
    created_at: datetime.datetime
    """In UTC."""
    tier: str = field(compare=False)
    """The fastest place that holds the weights now: `stored`, `host` or `device`."""
    aliases: tuple[str, ...]
    """Those that stand for this version, alone or beside others."""
    is_pinned: bool
    """Whether it is to stay on the device."""
    expires_at: datetime.datetime | None
    """When it is taken away, in UTC; None if only a call does that."""
    status: AdapterStatus = field(compare=False)
    """What goes on with it; two values of one version are equal whatever that is."""
    reference: str = field(compare=False)
    """What this client has to say to mean exactly this version: the shortest reference."""


@dataclass(frozen=True, slots=True)
class AdapterChange:
    """Something that happened to a version."""

    kind: str
    """`existing`, `registered`, `updated`, `moved` or `deleted`."""
    adapter: Adapter
    """As it is after that, or as it last was."""


@dataclass(frozen=True, slots=True)
class AliasMove:
    """One change of an alias."""

    before: dict[int, int]
    """Weight by version; empty where the alias was new."""
    after: dict[int, int]
    """Weight by version; empty where the alias was taken away."""
    moved_at: datetime.datetime
    """In UTC."""
    moved_by: str
