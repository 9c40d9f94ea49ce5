"""Which adapter a request uses, and where its bytes are."""

import enum

import msgspec
from msgspec import Struct

from loramux_adapters.head import Task
from loramux_server.wire.weight_format import StorageFormat


class Combination(enum.StrEnum):
    """How a mix is combined into one adapter, as PEFT's `add_weighted_adapter` defines it."""

    CAT = "cat"
    """Factors are concatenated: updates add up, and so do ranks."""
    LINEAR = "linear"
    """Factors are added; all ranks are equal."""


class Part(Struct, frozen=True):
    """One adapter of a mix."""

    digest: str
    path: str
    weight: float
    seal: str = ""


class AdapterSource(Struct, frozen=True):
    """One adapter version, or a mix of several: what it is and where its bytes are."""

    digest: str
    """Identity: `sha256:` and the digest of the package, or of what a mix consists of."""
    path: str
    """Empty for a mix."""
    rank: int
    """The largest rank of any module."""
    num_bytes: int
    """Bytes of its weights in memory."""
    item_bytes: int = 4
    """Bytes of a weight in A and B: fewer than 4 only if all were saved in 16 bits."""
    edit_bytes: int = 0
    """Bytes of all weights other than A and B. All are float32, except matrices that replace those
    of the base, which stay in the format in which they were saved."""
    vocab_size: int = 0
    """Vocabulary size of the base with this adapter; 0 if unchanged."""
    tenant: str = ""
    """The tenant whose share of the device it counts against: who had the content loaded."""
    invocation: tuple[int, ...] = ()
    """aLoRA's invocation tokens: active from their last occurrence in a prompt; empty: always."""
    parts: tuple[Part, ...] = ()
    """The adapters of a mix; empty for a single adapter."""
    combination: Combination = Combination.CAT
    """How they are combined."""
    virtual_tokens: int = 0
    """Virtual tokens that it puts before every prompt."""
    has_cache: bool = False
    """Whether it brings keys and values for them (prefix tuning), not embeddings."""
    task: Task | None = None
    """The task of its head; None if it generates text."""
    seal: str = ""
    """BLAKE3 hash of its bytes, which is faster to verify than the digest; empty if unknown."""

    def as_stored(self, storage_format: StorageFormat) -> "AdapterSource":
        """Return it with the sizes that its weights take when stored as `storage_format` says."""
        item_bytes = storage_format.item_bytes(self.item_bytes)
        if item_bytes == self.item_bytes:
            return self
        low_rank = (self.num_bytes - self.edit_bytes) * item_bytes // self.item_bytes
        num_bytes = low_rank + self.edit_bytes
        return msgspec.structs.replace(self, num_bytes=num_bytes, item_bytes=item_bytes)
